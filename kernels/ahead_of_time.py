"""Compile every Triton kernel for GPUs that need not be there, and report what the compilers say about each.

    python -m bayes_prompt.kernels.ahead_of_time [--json] [--target sm_90] [--operation progress_filter]

An operation takes part by a list `AHEAD_OF_TIME` in its `triton.py`: tuples (kernel, {argument: type}, {constant:
value}, number of warps of 32 threads), such as `(_advance, {"belief": "*fp32", "num_prompts": "i64"}, {"K": 3}, 4)`.
Nothing else needs to be told. Must run without TRITON_INTERPRET=1, which replaces the kernels by interpreted ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bayes_prompt.kernels

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
"""Shared memory (AMD: local data share) that one program may use. Source: the vendors' architecture guides."""


@dataclass(frozen=True)
class Variant:
    """One kernel with the types of its arguments and the values of its constants."""

    operation: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int


@dataclass(frozen=True)
class Report:
    """What the compilers say about one variant on one target.

    num_warps: of 32 threads; warps of AMD have 64, and half as many are compiled.
    registers: per thread (AMD: vector registers).
    spills: bytes of registers stored to and loaded from memory per thread (AMD: number of spilled registers).
    shared_bytes: per program.
    narrow_offsets: pointer offsets and integer products in the kernel's IR that are less than 64 bits wide, which is
    where a large pool would overflow.
    """

    operation: str
    kernel: str
    target: str
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    registers: int
    spills: int
    shared_bytes: int
    narrow_offsets: int


def variants(operation: str | None = None) -> list[Variant]:
    """The variants of one operation, or of all."""
    found = []
    for package in pkgutil.iter_modules(bayes_prompt.kernels.__path__):
        if not package.ispkg or operation not in (None, package.name):
            continue
        module = importlib.import_module(f"{bayes_prompt.kernels.__name__}.{package.name}.triton")
        found += [Variant(package.name, *entry) for entry in module.AHEAD_OF_TIME]
    return found


def compile_variant(variant: Variant, target: str) -> Report:
    """Compile for one of `TARGETS`. Compiler errors are raised as they come."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    cuda = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if cuda else GPUTarget("hip", target, 64)
    # What a launch finds: tensors are aligned by torch's allocator. Sizes are taken for multiples of 16, where accesses
    # become wide, which needs the most registers.
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, parameter in enumerate(variant.kernel.params)
        if parameter.name in variant.types and not parameter.do_not_specialize
    }
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.types.get(name, "constexpr") for name in variant.kernel.arg_names},
        constexprs=variant.constants,
        attrs=aligned,
    )
    warps = max(1, variant.num_warps * 32 // gpu.warp_size)
    compiled = triton.compile(source, target=gpu, options={"num_warps": warps})
    registers, spills = _ptxas(compiled.asm["ptx"], gpu.arch) if cuda else _amdgcn(compiled.asm["amdgcn"])
    return Report(
        operation=variant.operation,
        kernel=compiled.metadata.name,
        target=target,
        types=variant.types,
        constants=variant.constants,
        num_warps=variant.num_warps,
        registers=registers,
        spills=spills,
        shared_bytes=compiled.metadata.shared,
        narrow_offsets=narrow_offsets(compiled.asm["ttir"]),
    )


def narrow_offsets(ttir: str) -> int:
    """How many pointer offsets and integer products in a kernel's Triton IR are narrower than 64 bits."""
    offsets = re.findall(r"tt\.addptr .*, (?:tensor<(?:\d+x)*)?(i\d+)", ttir)
    products = re.findall(r"arith\.muli .* : (?:tensor<(?:\d+x)*)?(i\d+)", ttir)
    return sum(width != "i64" for width in offsets + products)


def _ptxas(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and spilled bytes of a kernel, from the assembler that comes with Triton."""
    from triton.backends.nvidia.compiler import get_ptxas

    name = re.findall(r"\.target (\w+)", ptx)[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={name}", str(source), "-o", f"{source}.cubin"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.findall(r"Used (\d+) registers", log)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    return max(map(int, registers)), sum(map(int, spills))


def _amdgcn(assembly: str) -> tuple[int, int]:
    """Vector registers and spilled registers of a kernel, from the metadata at the end of its assembly."""
    fields = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", assembly))
    return int(fields["vgpr_count"]), int(fields["vgpr_spill_count"]) + int(fields["sgpr_spill_count"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what was asked for and print the reports, as a table or as JSON; returns the exit status."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bayes_prompt.kernels.ahead_of_time", description=description)
    parser.add_argument("--json", action="store_true", help="print a list of reports as JSON")
    parser.add_argument("--target", choices=TARGETS, action="append", help="may be repeated; default: all")
    parser.add_argument("--operation", help="default: all")
    options = parser.parse_args(arguments)
    import triton

    if triton.knobs.runtime.interpret:
        parser.error("kernels cannot be compiled while TRITON_INTERPRET=1: unset it")
    chosen = variants(options.operation)
    if not chosen:
        parser.error(f"no operation is called {options.operation!r}")
    jobs = [(variant, target) for variant in chosen for target in options.target or TARGETS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compilers release the GIL
        reports = list(pool.map(compile_variant, *zip(*jobs, strict=True)))
    if options.json:
        json.dump([asdict(report) for report in reports], sys.stdout, indent=1)
        print()
    else:
        print("\n".join(table(reports)))
    return 0


def table(reports: list[Report]) -> list[str]:
    """The reports as lines of text, a header first."""
    lines = [f"{'operation':16} {'kernel':14} {'target':7} {'type':5} warps registers spills shared  constants"]
    for r in reports:
        scalar = "fp64" if "*fp64" in r.types.values() else "fp32"
        numbers = f"{r.num_warps:5} {r.registers:9} {r.spills:6} {r.shared_bytes:6}"
        constants = " ".join(f"{name}={value}" for name, value in r.constants.items())
        lines.append(f"{r.operation:16} {r.kernel:14} {r.target:7} {scalar:5} {numbers}  {constants}")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
