"""Processor instructions that numba does not offer, for compiled CPU loops: `prefetch` and `fma`."""

from __future__ import annotations

from typing import Any

import numba
from numba.core import cgutils, types
from numba.extending import intrinsic

LINE = 64  # bytes of a cache line, on the processors that there are


def _prefetch(typing_context: Any, array: types.Array, element: types.Integer) -> Any:
    """prefetch(array, element): a hint that an element will be needed soon. It may lie beyond the end of the array.

    Processors fetch ahead along a few long arrays by themselves, but not along a dozen of which a loop takes one part
    after the other.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = context.make_array(array)(context, builder, arguments[0])
        address = builder.bitcast(builder.gep(values.data, [arguments[1]]), cgutils.voidptr_t)
        number = cgutils.int32_t
        kind = cgutils.ir.FunctionType(cgutils.ir.VoidType(), [cgutils.voidptr_t, *[number] * 3])  # numba's llvmlite
        hint = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        builder.call(hint, [address, number(0), number(3), number(1)])  # to be read; into every cache; data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """fma(x, y, z): x * y + z of float64 numbers, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


def _nothing(array: Any, element: int) -> None:
    """Without a compiler there is nothing to be hinted at."""


def _rounded_twice(x: float, y: float, z: float) -> float:
    """Without a compiler: `math.fma` is of Python 3.13."""
    return x * y + z


prefetch = _nothing if numba.config.DISABLE_JIT else intrinsic(_prefetch)
fma = _rounded_twice if numba.config.DISABLE_JIT else intrinsic(_fma)
