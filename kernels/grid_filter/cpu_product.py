"""Products of a row with a small matrix within compiled CPU loops, whose sums stay in vector registers.

Sums of one row do not wait for each other, so they lie side by side in vectors. Each is kept in four parts, for a
vector would otherwise wait for its last addition. What a row gives depends on no other.
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
_INDEX = cgutils.ir.IntType(64)


def summing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile into whoever calls it; sums may be taken in another order, the same at every call: as partial sums."""
    return numba.njit(function, forceinline=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


def lanes(dtype: np.dtype) -> int:
    """How many numbers a vector has."""
    return VECTOR_BYTES // dtype.itemsize


def _positive_part(typing_context: Any, row: types.Array, table: types.Array) -> Any:
    """positive_part(row, table): the sum over columns of max(row @ table, 0).

    row: (depth,), table: (depth, columns), both contiguous; columns a multiple of `lanes`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums = _Sums(context, builder, signature.args, arguments)
        gains = cgutils.alloca_once(builder, sums.vector)
        builder.store(sums.zeros, gains)
        with cgutils.for_range_slice(builder, _INDEX(0), sums.columns, _INDEX(sums.width), intp=_INDEX) as (column, _):
            total = sums.at(column)
            positive = builder.select(builder.fcmp_unordered(">", total, sums.zeros), total, sums.zeros)  # nan is kept
            builder.store(builder.fadd(builder.load(gains), positive), gains)
        return sums.across(builder.load(gains))

    return row.dtype(row, table), generate


def _product(typing_context: Any, row: types.Array, table: types.Array, out: types.Array) -> Any:
    """product(row, table, out): out = row @ table.

    row: (depth,), table: (depth, columns), out: (columns,), all contiguous; at least `lanes` columns.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums = _Sums(context, builder, signature.args[:2], arguments[:2])
        to = context.make_array(signature.args[2])(context, builder, arguments[2])
        last = builder.sub(sums.columns, _INDEX(sums.width))  # the last vector overlaps the one before
        with cgutils.for_range_slice(builder, _INDEX(0), sums.columns, _INDEX(sums.width), intp=_INDEX) as (column, _):
            first = builder.select(builder.icmp_signed("<", column, last), column, last)
            place = builder.bitcast(builder.gep(to.data, [first]), sums.vector.as_pointer())
            builder.store(sums.at(first), place, align=sums.size)
        return context.get_dummy_value()

    return types.void(row, table, out), generate


class _Sums:
    """Generates a vector of columns of row @ table."""

    def __init__(self, context: Any, builder: Any, kinds: Any, arguments: Any) -> None:
        row, table = (
            context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, arguments, strict=True)
        )
        scalar = row.data.type.pointee
        self.builder, self.row, self.table = builder, row.data, table.data
        self.size = context.get_abi_sizeof(scalar)
        self.width = VECTOR_BYTES // self.size
        self.vector = cgutils.ir.VectorType(scalar, self.width)
        self.zeros = cgutils.ir.Constant(self.vector, [0.0] * self.width)
        self.depth, self.columns = (builder.extract_value(table.shape, axis) for axis in (0, 1))
        self.parts = [cgutils.alloca_once(builder, self.vector) for _ in range(_PARTS)]

    def at(self, column: Any) -> Any:
        """The sums of the columns from this one on."""
        builder = self.builder
        whole = builder.sub(self.depth, builder.urem(self.depth, _INDEX(_PARTS)))
        for part in self.parts:
            builder.store(self.zeros, part)
        with cgutils.for_range_slice(builder, _INDEX(0), whole, _INDEX(_PARTS), intp=_INDEX) as (k, _):
            for number, part in enumerate(self.parts):
                self._add(part, builder.add(k, _INDEX(number)), column)
        with cgutils.for_range_slice(builder, whole, self.depth, _INDEX(1), intp=_INDEX) as (k, _):
            self._add(self.parts[0], k, column)
        first, second, third, fourth = map(builder.load, self.parts)
        return builder.fadd(builder.fadd(first, second), builder.fadd(third, fourth))

    def across(self, total: Any) -> Any:
        """The sum of the numbers of a vector."""
        width = self.width
        while width > 1:
            width //= 2
            halves = self._lanes(range(width)), self._lanes(range(width, 2 * width))
            total = self.builder.fadd(*(self.builder.shuffle_vector(total, total, half) for half in halves))
        return self.builder.extract_element(total, cgutils.int32_t(0))

    def _add(self, total: Any, k: Any, column: Any) -> None:
        builder, undefined = self.builder, self.vector(cgutils.ir.Undefined)
        number = builder.insert_element(undefined, builder.load(builder.gep(self.row, [k])), cgutils.int32_t(0))
        spread = builder.shuffle_vector(number, undefined, self._lanes([0] * self.width))
        place = builder.gep(self.table, [builder.add(builder.mul(k, self.columns), column)])
        weights = builder.load(builder.bitcast(place, self.vector.as_pointer()), align=self.size)
        product = builder.fmul(spread, weights, flags=("contract",))
        builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)

    @staticmethod
    def _lanes(chosen: Any) -> Any:
        return cgutils.ir.Constant(cgutils.ir.VectorType(cgutils.int32_t, len(chosen)), list(chosen))


def _positive_part_slowly(row: np.ndarray, table: np.ndarray) -> np.floating:
    total: np.floating = np.maximum(row @ table, 0).sum(dtype=row.dtype)
    return total


def _product_slowly(row: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    out[:] = row @ table


positive_part = _positive_part_slowly if numba.config.DISABLE_JIT else intrinsic(_positive_part)
product = _product_slowly if numba.config.DISABLE_JIT else intrinsic(_product)
