"""Passing float64 numbers to Triton kernels: Triton hands Python floats over as float32."""

from __future__ import annotations

import struct


def float64_bits(value: float) -> int:
    """The 64 bits of a float64 as a signed integer; a kernel turns them back by `.to(tl.float64, bitcast=True)`."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits
