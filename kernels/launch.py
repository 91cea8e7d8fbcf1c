"""Small things that every launch of a Triton kernel needs."""

from __future__ import annotations

import struct

import torch


def float64_bits(value: float) -> int:
    """The 64 bits of a float64 as a signed integer, for an argument annotated `tl.int64`.

    Triton hands Python floats to kernels as float32, and would lose half of a decay of 0.999 in float64. In the kernel:
    `bits.to(tl.int64).to(tl.float64, bitcast=True)`. List the argument in `do_not_specialize`.
    """
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits


def warps(threads: int) -> int:
    """How many warps make up `threads` threads: warps are 32 wide on NVIDIA, 64 on AMD's data centre GPUs."""
    return max(1, threads // (64 if torch.version.hip else 32))
