"""The compiled loops of `cpu.py`: bounds of what all rows add, and what a few rows add exactly.

Dot products are of integers, whose sums the compiler may reorder, so that they become vector instructions.
"""

from __future__ import annotations

import numpy as np

from bayes_prompt.kernels.threads import compiled, inlined

BLOCK = 1024


@inlined
def squared_distance(values, squares, i, j):  # type: ignore[no-untyped-def]
    """Of rows i and j: an integer below 2**31, as float64."""
    a, b, product = values[i], values[j], np.int32(0)
    for d in range(len(a)):  # each sum is below 2**29 by Cauchy and Schwarz; numba would widen it
        product = np.int32(product + np.int32(np.int32(a[d]) * np.int32(b[d])))
    return np.float64(np.int64(squares[i]) + np.int64(squares[j]) - 2 * np.int64(product))


@inlined
def squared_distances(a, square, total, totals, count):  # type: ignore[no-untyped-def]
    """The sum of those of a row to `count` others, whose vectors sum to `total` and squares to `totals`: exact."""
    product = np.int64(0)
    for d in range(len(a)):
        product += np.int64(a[d]) * total[d]
    return np.float64(count * np.int64(square) + totals - 2 * product)


@compiled
def sum_squared_distances(values, squares, total, totals, count, out):  # type: ignore[no-untyped-def]
    """`squared_distances` of every row."""
    for i in range(len(values)):
        out[i] = squared_distances(values[i], squares[i], total, totals, count)


@inlined
def added(utility, weight, factor, part, past_factor, past):  # type: ignore[no-untyped-def]
    """What a row adds, rounded as in the reference. It never falls when a part grows: bounds go in as well."""
    return utility + weight * (factor * part + past_factor * past)


@compiled
def bound_sums(  # type: ignore[no-untyped-def]
    first, last, root, short, rest, squares, z, news, new, total, since, upto, count, far, pad, grow,
    utility, weight, factor, past_factor, past, bounds, top, where,
):  # fmt: skip
    """Bound what each row of the blocks from `first` to before `last` adds.

    `since` is brought up to date with `new` rows, of squares `news`.

    total: exact part of the distances to the first `upto` of `count` rows. since: approximately the sum of the squared
    distances to the others, off by rest * far[upto] + pad[upto] at most. top, where: the largest bound in
    each block, and its row.
    """
    product = np.empty(BLOCK)
    for block in range(first, last):
        start, stop = block * BLOCK, min((block + 1) * BLOCK, len(rest))
        size, sums = stop - start, product[: stop - start]
        sums[:] = 0.0
        for k in range(len(z)):
            factor_k, part_k = z[k], short[k, start:stop]
            for r in range(size):
                sums[r] += factor_k * part_k[r]
        own, done, left = since[start:stop], upto[start:stop], rest[start:stop]
        for r in range(size):
            own[r] += new * np.float64(squares[start + r]) + news - 2 * sums[r]
            sums[r] = max(0.0, own[r] + left[r] * far[done[r]] + pad[done[r]])
        if root:  # the mean of roots is not above the root of the mean
            for r in range(size):
                sums[r] = (total[start + r] + np.sqrt((count - done[r]) * sums[r])) * grow
        else:
            for r in range(size):
                sums[r] += total[start + r]
        bound = bounds[start:stop]
        for r in range(size):
            bound[r] = added(utility[start + r], weight, factor, sums[r], past_factor, past[start + r])
        where[block] = start + np.argmax(bound)
        top[block] = bounds[where[block]]


@compiled
def bound_least(  # type: ignore[no-untyped-def]
    first, last, root, total, utility, weight, factor, past_factor, past, bounds, top, where
):  # fmt: skip
    """The same for least distances, of which those known so far are bounds."""
    for block in range(first, last):
        start, stop = block * BLOCK, min((block + 1) * BLOCK, len(total))
        bound = bounds[start:stop]
        for r in range(stop - start):
            part, earlier = total[start + r], past[start + r]
            if root:
                part, earlier = np.sqrt(part), np.sqrt(earlier)
            bound[r] = added(utility[start + r], weight, factor, part, past_factor, earlier)
        where[block] = start + np.argmax(bound)
        top[block] = bounds[where[block]]


@compiled
def reaching(bounds, top, best):  # type: ignore[no-untyped-def]
    """The rows whose bound is at least `best`, (M,) int64."""
    count = 0
    for block in range(len(top)):
        if top[block] >= best:
            for r in range(block * BLOCK, min((block + 1) * BLOCK, len(bounds))):
                count += bounds[r] >= best
    rows, count = np.empty(count, np.int64), 0
    for block in range(len(top)):
        if top[block] >= best:
            for r in range(block * BLOCK, min((block + 1) * BLOCK, len(bounds))):
                if bounds[r] >= best:
                    rows[count] = r
                    count += 1
    return rows


@compiled
def settle_sums(  # type: ignore[no-untyped-def]
    root, rows, values, squares, vector, totals, count, chosen, history, seen, total, since, upto,
    utility, weight, factor, past_factor, past, gains,
):  # fmt: skip
    """What `rows` add, exactly, into `gains`; returns how many products of vectors that took.

    vector, totals: sum of the vectors and of the squares of the `count` rows of the batch. seen: how much of the
    history is in `past`: nothing, and then that is a bound, or all.
    """
    products = 0
    for n in range(len(rows)):
        i = rows[n]
        if seen[i] < len(history):
            exact = 0.0
            for h in history:
                exact += np.sqrt(squared_distance(values, squares, i, h))
            past[i], seen[i] = exact, len(history)
            products += len(history)
        if upto[i] < count:
            if root:
                for j in chosen[upto[i] : count]:
                    total[i] += np.sqrt(squared_distance(values, squares, i, j))
                products += count - upto[i]
            else:
                total[i] = squared_distances(values[i], squares[i], vector, totals, count)
                products += 1
            since[i], upto[i] = 0.0, count
        gains[n] = added(utility[i], weight, factor, total[i], past_factor, past[i])
    return products


@compiled
def settle_least(  # type: ignore[no-untyped-def]
    root, rows, values, squares, count, chosen, history, seen, total, upto, best,
    utility, weight, factor, past_factor, past, gains,
):  # fmt: skip
    """The same for least distances; a row that turns out to add less than `best` is left, with -inf for its gain."""
    products = 0
    for n in range(len(rows)):
        i = rows[n]
        while True:
            part, earlier = total[i], past[i]
            if root:
                part, earlier = np.sqrt(part), np.sqrt(earlier)
            gains[n] = added(utility[i], weight, factor, part, past_factor, earlier)
            if gains[n] < best:
                gains[n] = -np.inf
                break
            if upto[i] < count:
                total[i] = min(total[i], squared_distance(values, squares, i, chosen[upto[i]]))
                upto[i] += 1
            elif seen[i] < len(history):
                past[i] = min(past[i], squared_distance(values, squares, i, history[seen[i]]))
                seen[i] += 1
            else:
                break
            products += 1
    return products
