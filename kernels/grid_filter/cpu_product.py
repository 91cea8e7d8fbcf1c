"""Products of a row with a small matrix within compiled CPU loops, whose sums stay in vector registers.

A look at a prompt has a sum for each outcome. Sums of one row do not wait for each other, so they lie side by side in
vectors; each is kept in four parts, for a vector sum would otherwise wait for its last addition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

VECTOR_BYTES = 64  # of two instructions where registers are shorter
_PARTS = 4


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into whoever calls it; sums may be taken in another order, the same at every call: as partial sums."""
    return numba.njit(function, forceinline=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


def lanes(dtype: np.dtype) -> int:
    """How many numbers a vector has: the columns of a table must be a multiple of it."""
    return VECTOR_BYTES // dtype.itemsize


def _positive_part(typing_context: Any, row: types.Array, table: types.Array) -> Any:
    """positive_part(row, table): the sum over columns of max(row @ table, 0).

    row: (depth,), table: (depth, columns), both contiguous; columns a multiple of `lanes`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        )
        ir, index, none = cgutils.ir, cgutils.ir.IntType(64), cgutils.int32_t
        scalar = left.data.type.pointee
        size = context.get_abi_sizeof(scalar)
        width = VECTOR_BYTES // size
        vector = ir.VectorType(scalar, width)
        zeros, undefined = ir.Constant(vector, [0.0] * width), vector(ir.Undefined)
        depth, columns = (builder.extract_value(right.shape, axis) for axis in (0, 1))
        together = index(_PARTS)
        whole = builder.sub(depth, builder.urem(depth, together))

        def add(total: Any, k: Any, column: Any) -> None:
            number = builder.load(builder.gep(left.data, [k]))
            spread = builder.shuffle_vector(
                builder.insert_element(undefined, number, none(0)),
                undefined,
                ir.Constant(ir.VectorType(none, width), [0] * width),
            )
            place = builder.gep(right.data, [builder.add(builder.mul(k, columns), column)])
            weights = builder.load(builder.bitcast(place, vector.as_pointer()), align=size)
            product = builder.fmul(spread, weights, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)

        parts = [cgutils.alloca_once(builder, vector) for _ in range(_PARTS)]
        gains = cgutils.alloca_once(builder, vector)
        builder.store(zeros, gains)
        with cgutils.for_range_slice(builder, index(0), columns, index(width), intp=index) as (column, _):
            for part in parts:
                builder.store(zeros, part)
            with cgutils.for_range_slice(builder, index(0), whole, together, intp=index) as (k, _):
                for number, part in enumerate(parts):
                    add(part, builder.add(k, index(number)), column)
            with cgutils.for_range_slice(builder, whole, depth, index(1), intp=index) as (k, _):
                add(parts[0], k, column)
            first, second, third, fourth = map(builder.load, parts)
            total = builder.fadd(builder.fadd(first, second), builder.fadd(third, fourth))
            positive = builder.select(builder.fcmp_unordered(">", total, zeros), total, zeros)  # nan stays nan
            builder.store(builder.fadd(builder.load(gains), positive), gains)
        rest = builder.load(gains)
        while width > 1:
            width //= 2
            low, high = (
                ir.Constant(ir.VectorType(none, width), list(range(start, start + width))) for start in (0, width)
            )
            rest = builder.fadd(builder.shuffle_vector(rest, rest, low), builder.shuffle_vector(rest, rest, high))
        return builder.extract_element(rest, none(0))

    return row.dtype(row, table), generate


def _positive_part_slowly(row: np.ndarray, table: np.ndarray) -> np.floating:
    total: np.floating = np.maximum(row @ table, 0).sum(dtype=row.dtype)
    return total


positive_part = _positive_part_slowly if numba.config.DISABLE_JIT else intrinsic(_positive_part)
