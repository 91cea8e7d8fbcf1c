"""Compile every Triton kernel for GPUs that need not be there, and report what the compilers say about each.

    python -m bayes_prompt.kernels.ahead_of_time [--json | --markdown] [--target sm_90] [--operation progress_filter]

An operation takes part by a list `AHEAD_OF_TIME` in its `triton.py`: tuples (kernel, {argument: type}, {constant:
value}, number of warps of 32 threads), such as `(_advance, {"belief": "*fp32", "num_prompts": "i64"}, {"K": 3}, 4)`. A
fifth member names the targets of a variant that others do not launch. Nothing else needs to be told. Must run without
TRITON_INTERPRET=1, which replaces the kernels by interpreted ones.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
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

REGISTERS, WARPS, PROGRAMS = 65_536, 64, 32
"""Of a multiprocessor, on every CUDA target. Source: the compute capabilities in the CUDA programming guide."""


@dataclass(frozen=True)
class Variant:
    """One kernel with the types of its arguments and the values of its constants."""

    operation: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    targets: Sequence[str] = TARGETS


@dataclass(frozen=True)
class Report:
    """What the compilers say about one variant on one target.

    num_warps: of 32 threads; warps of AMD have 64, and half as many are compiled.
    registers: per thread (AMD: vector registers).
    spills: bytes of registers stored to and loaded from memory per thread (AMD: number of spilled registers).
    shared_bytes: per program.
    narrow_offsets: pointer offsets and integer products in the kernel's IR that are less than 64 bits wide, which is
    where a large pool would overflow.
    pending_products: products of matrices that a loop goes on without having waited for. Triton has overwritten what
    such a product still reads, where that is used for something else too.
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
    pending_products: int

    @property
    def scalar(self) -> str:
        """The type of the pool's numbers. Single numbers beside a float32 pool may be float64, never the reverse."""
        return "fp32" if "*fp32" in self.types.values() else "fp64"

    @property
    def variant(self) -> tuple[str, str, str, str, str]:
        """Operation, kernel, scalar type, constants (true ones by name alone, no false ones) and warps, as text."""
        constants = (
            name if value is True else f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.constants.items()
            if value is not False
        )
        return self.operation, self.kernel, self.scalar, " ".join(constants), str(self.num_warps)

    @property
    def resident_programs(self) -> int | None:
        """How many programs a CUDA multiprocessor holds at once; None for AMD, which has other limits."""
        if not self.target.startswith("sm_"):
            return None
        warp_registers = math.ceil(self.registers * 32 / 256) * 256
        warps = min(WARPS, REGISTERS // warp_registers // 4 * 4)  # a quarter of the registers for each of 4 schedulers
        # Every program costs the system 1 KiB, so that one alone may use 1 KiB less than there is.
        shared = (SHARED_BYTES[self.target] + 1024) // (math.ceil(self.shared_bytes / 128) * 128 + 1024)
        return min(PROGRAMS, warps // self.num_warps, shared)


def variants(operation: str | None = None) -> list[Variant]:
    """The variants of one operation, or of all."""
    found = []
    for package in pkgutil.iter_modules(bayes_prompt.kernels.__path__):
        if not package.ispkg or operation not in (None, package.name):
            continue
        name = f"{bayes_prompt.kernels.__name__}.{package.name}.triton"
        if importlib.util.find_spec(name) is None:  # an operation that is plain torch on a GPU
            continue
        module = importlib.import_module(name)
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
        pending_products=len(re.findall(r"warp_group_dot_wait .*pendings = [1-9]", compiled.asm["ttgir"])),
    )


def narrow_offsets(ttir: str) -> int:
    """How many pointer offsets and integer products in a kernel's Triton IR are narrower than 64 bits.

    Offsets that are constants or ranges of constants do not grow with the pool, and are not counted.
    """
    constants = set(re.findall(r"(%\S+) = (?:arith\.constant|tt\.make_range) ", ttir))
    offsets = re.findall(r"tt\.addptr \S+, (%\S+) : .*, (?:tensor<(?:\d+x)*)?(i\d+)", ttir)
    products = re.findall(r"arith\.muli .* : (?:tensor<(?:\d+x)*)?(i\d+)", ttir)
    widths = [width for offset, width in offsets if offset not in constants] + products
    return sum(width != "i64" for width in widths)


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
    """Compile what was asked for and print the reports, as a table, JSON or Markdown; returns the exit status."""
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m bayes_prompt.kernels.ahead_of_time", description=description)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of reports as JSON")
    form.add_argument("--markdown", action="store_true", help="print a document with a line for each variant")
    parser.add_argument("--target", choices=TARGETS, action="append", help="may be repeated; default: all")
    parser.add_argument("--operation", help="default: all")
    options = parser.parse_args(arguments)
    import triton

    if triton.knobs.runtime.interpret:
        parser.error("kernels cannot be compiled while TRITON_INTERPRET=1: unset it")
    chosen = variants(options.operation)
    if not chosen:
        parser.error(f"no operation is called {options.operation!r}")
    jobs = [(each, target) for each in chosen for target in options.target or TARGETS if target in each.targets]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compilers release the GIL
        reports = list(pool.map(compile_variant, *zip(*jobs, strict=True)))
    if options.json:
        json.dump([asdict(report) for report in reports], sys.stdout, indent=1)
        print()
    else:
        print("\n".join(markdown(reports) if options.markdown else table(reports)))
    return 0


def table(reports: list[Report]) -> list[str]:
    """The reports as lines of text, a header first."""
    lines = [f"{'operation':16} {'kernel':14} {'target':7} {'type':5} warps registers spills shared  constants"]
    for r in reports:
        numbers = f"{r.num_warps:5} {r.registers:9} {r.spills:6} {r.shared_bytes:6}"
        constants = " ".join(f"{name}={value}" for name, value in r.constants.items())
        lines.append(f"{r.operation:16} {r.kernel:14} {r.target:7} {r.scalar:5} {numbers}  {constants}")
    return lines


def markdown(reports: list[Report]) -> list[str]:
    """The reports as the lines of a Markdown document: a line for each variant, the targets side by side."""
    import triton

    targets = list(dict.fromkeys(r.target for r in reports))
    columns = ["operation", "kernel", "type", "constants", "warps", *targets]
    cells = {variant: {r.target: _cell(r) for r in compiled} for variant, compiled in by_variant(reports).items()}
    rows = [[*variant, *(cell.get(target, "") for target in targets)] for variant, cell in cells.items()]
    return [
        "# What the kernels take of a GPU",
        "",
        f"Made with Triton {triton.__version__} by `make resources`. The tests compile all kernels and compare.",
        "",
        "A cell has registers a thread / those that are spilled / bytes of shared memory a program / how many",
        "programs these and the warps let a multiprocessor hold at once (CUDA only). Spills are bytes that a",
        "thread stores and loads; of AMD, whose registers here are vector registers, they are registers, scalar ones",
        "too, which go to lanes of vector registers. Constants that are true have their name alone, false ones are",
        "left out. Warps have 32 threads; for AMD half as many are compiled, of 64. Cells are empty for targets on",
        "which a variant is not launched.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in [columns, ["---"] * len(columns), *rows]),
    ]


def by_variant(reports: list[Report]) -> dict[tuple[str, ...], list[Report]]:
    """The reports of each variant: operation, kernel, scalar type, constants and warps, as text.

    Those that agree in all of these are told apart by the types of arguments in which they differ, after the constants.
    """
    groups: dict[tuple[str, ...], list[Report]] = {}
    for r in reports:
        alike = [other.types for other in reports if other.variant == r.variant]
        apart = [f"{name}={kind}" for name, kind in r.types.items() if any(types.get(name) != kind for types in alike)]
        operation, kernel, scalar, constants, warps = r.variant
        groups.setdefault((operation, kernel, scalar, " ".join([constants, *apart]), warps), []).append(r)
    return groups


def _cell(report: Report) -> str:
    numbers = [report.registers, report.spills, report.shared_bytes, report.resident_programs]
    return " / ".join(str(number) for number in numbers if number is not None)


if __name__ == "__main__":
    raise SystemExit(main())
