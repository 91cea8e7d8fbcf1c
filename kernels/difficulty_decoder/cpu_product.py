"""Products of small matrices within compiled CPU loops: a tile of the result stays in vector registers.

BLAS would be as fast, but it has threads of its own, which wait for each other at every call: blocks of rows that stay
in the caches would be too short for it. Here each thread works on its rows alone, and what a row gives depends on no
other.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import cgutils, codegen, types
from numba.extending import intrinsic

_WIDE = "+avx512f" in codegen.get_host_cpu_features()  # 32 registers of 64 bytes, not 16 of 32
TILE_ROWS, _VECTORS, _VECTOR_BYTES = (6, 4, 64) if _WIDE else (4, 2, 32)  # with a vector of weights each, all fit
DEPTH = 128  # rows of a panel that are gone through at once: they stay in the first-level cache


def panel_columns(dtype: np.dtype) -> int:
    """How many columns of the result a panel of weights makes."""
    return _VECTORS * _VECTOR_BYTES // dtype.itemsize


def panels(weights: np.ndarray) -> np.ndarray:
    """Weights (outputs, inputs) as (number of panels, inputs, columns of a panel), filled up with zeros."""
    outputs, inputs = weights.shape
    columns = panel_columns(weights.dtype)
    count = -(-outputs // columns)
    full = np.zeros((count * columns, inputs), weights.dtype)
    full[:outputs] = weights
    return np.ascontiguousarray(full.reshape(count, columns, inputs).transpose(0, 2, 1))


def _add_product(typing_context: Any, x: types.Array, panel: types.Array, out: types.Array) -> Any:
    """add_product(x, panel, out): out += x @ panel, in registers.

    x: (TILE_ROWS, depth), panel: (depth, columns of a panel), out: (TILE_ROWS, columns of a panel); rows of all three
    are contiguous, those of the panel lie one after the other.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        left, right, result = (
            context.make_array(kind)(context, builder, value) for kind, value in zip(kinds, arguments, strict=True)
        )
        scalar = left.data.type.pointee
        lanes = _VECTOR_BYTES // context.get_abi_sizeof(scalar)
        vector, index = cgutils.ir.VectorType(scalar, lanes), cgutils.ir.IntType(64)

        def place(array: Any, row: Any, column: Any, wide: bool = True) -> Any:
            stride = builder.extract_value(array.strides, 0)
            start = builder.bitcast(array.data, cgutils.voidptr_t)
            address = builder.bitcast(builder.gep(start, [builder.mul(row, stride)]), scalar.as_pointer())
            address = builder.gep(address, [column])
            return builder.bitcast(address, vector.as_pointer()) if wide else address

        tile = [(index(r), index(v * lanes)) for r in range(TILE_ROWS) for v in range(_VECTORS)]
        sums = [cgutils.alloca_once(builder, vector) for _ in tile]
        aligned = context.get_abi_sizeof(scalar)
        for total, where in zip(sums, tile, strict=True):
            builder.store(builder.load(place(result, *where), align=aligned), total)
        with cgutils.for_range(builder, builder.extract_value(left.shape, 1), intp=index) as loop:
            weights = [builder.load(place(right, loop.index, index(v * lanes)), align=aligned) for v in range(_VECTORS)]
            undefined, none = vector(cgutils.ir.Undefined), cgutils.int32_t
            for r in range(TILE_ROWS):
                number = builder.load(place(left, index(r), loop.index, wide=False))
                first = builder.insert_element(undefined, number, none(0))
                spread = builder.shuffle_vector(
                    first, undefined, cgutils.ir.Constant(cgutils.ir.VectorType(none, lanes), [0] * lanes)
                )
                for v in range(_VECTORS):
                    total = sums[r * _VECTORS + v]
                    product = builder.fmul(spread, weights[v], flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        for total, where in zip(sums, tile, strict=True):
            builder.store(builder.load(total), place(result, *where), align=aligned)
        return context.get_dummy_value()

    return types.void(x, panel, out), generate


def _add_product_slowly(x: np.ndarray, panel: np.ndarray, out: np.ndarray) -> None:
    out += x @ panel


add_product = _add_product_slowly if numba.config.DISABLE_JIT else intrinsic(_add_product)
