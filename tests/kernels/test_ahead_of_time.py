"""Every Triton kernel compiles for GPUs that are not there, within their registers and shared memory."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from bayes_prompt.kernels import ahead_of_time
from bayes_prompt.kernels.ahead_of_time import Report

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "kernel_resources.md"
REGENERATE = f"`make resources` writes {DOCUMENT.relative_to(ROOT)} anew"

SPILLS = {
    "difficulty_decoder _decode fp32 WIDTH=288 HIDDEN=256 OUTPUTS=256 DRAWS=8 HIDDEN_BLOCK=256 OUTPUT_BLOCK=32 "
    "DRAW_BLOCK=8 DEPTH=32 TERMS=8 BELOW=0.25 PRECISION=tf32x3 STAGES=1 BLOCK=16 4": {"sm_90": 32, "sm_100": 32},
    "thompson _sample_beta fp64 SERIES_BELOW=0.0156 TRIG_TERMS=8 BLOCK=128 4": {"gfx942": 8},
    "thompson _score_beta fp32 SERIES_BELOW=0.25 TRIG_TERMS=5 BLOCK=256 4": {"sm_80": 16},
    "thompson _score_beta fp64 SERIES_BELOW=0.0156 TRIG_TERMS=8 BLOCK=128 4": {"gfx942": 17},
    "thompson _sample_dirichlet fp64 SERIES_BELOW=0.0156 TRIG_TERMS=8 ENTRIES=3 ENTRY_BLOCK=4 BLOCK=64 4": {
        "gfx942": 19
    },
    "top_b _count fp32 WORD=1 BLOCK=4096 MASKED 8": {"gfx942": 27},
    "top_b _count fp32 WORD=2 BLOCK=4096 MASKED 8": {"gfx942": 26},
    "top_b _gather fp32 BLOCK=1024 MASKED 4": {"gfx942": 25},
    "top_b _gather fp64 BLOCK=1024 4": {"gfx942": 32},
}
"""What is spilled (bytes, on gfx942 registers) with the Triton of the document; the other variants spill nothing."""


def table_rows(lines: list[str]) -> list[list[str]]:
    """The cells of a document's table: its header, then a line for each variant."""
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return [header, *rows]


def skip_unless_made_with_this_triton() -> None:
    version = re.search(r"Triton (\S+)", DOCUMENT.read_text())
    assert version
    if version[1] != triton.__version__:
        pytest.skip(f"compilers differ: the numbers are those of Triton {version[1]}, this is {triton.__version__}")


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    """From another process: in this one, kernels are interpreted ones where there is no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bayes_prompt.kernels.ahead_of_time", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Report(**report) for report in json.loads(done.stdout)]


def test_every_kernel_of_every_operation_is_compiled_for_every_target(reports: list[Report]) -> None:
    operations = {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    compiled = {(report.operation, report.target) for report in reports}
    assert compiled == {(operation, target) for operation in operations for target in ahead_of_time.TARGETS}
    for operation in operations:
        source = (ROOT / "kernels" / operation / "triton.py").read_text()
        launched = set(re.findall(r"^ +(\w+)\[.*\]\(", source, re.MULTILINE))
        assert launched
        assert launched <= {report.kernel for report in reports if report.operation == operation}


def test_float32_spills_nothing_on_sm_90(reports: list[Report]) -> None:
    """With any version of Triton. But for products in tf32, which hold three parts of each number at once."""
    for report in reports:
        if (report.target, report.scalar) == ("sm_90", "fp32") and report.constants.get("PRECISION") != "tf32x3":
            assert report.spills == 0, report


def test_spills_are_the_known_ones(reports: list[Report]) -> None:
    """Assemblers spill a few registers of their own accord where that lets one program more run at a time."""
    skip_unless_made_with_this_triton()
    spills = {
        " ".join(variant): {report.target: report.spills for report in compiled if report.spills}
        for variant, compiled in ahead_of_time.by_variant(reports).items()
    }
    assert {variant: targets for variant, targets in spills.items() if targets} == SPILLS


def test_programs_fit_a_processor(reports: list[Report]) -> None:
    for report in reports:
        assert report.shared_bytes <= ahead_of_time.SHARED_BYTES[report.target], report
        # 65,536 registers of 32 bits a multiprocessor; AMD: 512 for each of 64 lanes of four SIMD units.
        threads, registers = 32 * report.num_warps, 4 * 64 * 512 if report.target == "gfx942" else 65_536
        assert 0 < report.registers * threads <= registers, report


def test_offsets_are_64_bits_wide(reports: list[Report]) -> None:
    """A pool of K states overflows 32 bits from 2**31 / K**2 prompts on."""
    for report in reports:
        assert report.narrow_offsets == 0, report


def test_no_loop_goes_on_without_its_products(reports: list[Report]) -> None:
    """What such a product reads may be overwritten meanwhile."""
    for report in reports:
        assert report.pending_products == 0, report


def test_narrow_offsets_are_found() -> None:
    ttir = """
      %0 = arith.muli %pid, %c512_i32 : i32 loc(#loc1)
      %1 = arith.muli %a, %b : tensor<512xi64> loc(#loc1)
      %2 = tt.addptr %p, %1 : tensor<512x!tt.ptr<f32>>, tensor<512xi64> loc(#loc2)
      %3 = tt.addptr %p, %0 : !tt.ptr<f32>, i32 loc(#loc2)
      %4 = tt.addptr %p, %q : tensor<4x512x!tt.ptr<f32>>, tensor<4x512xi32> loc(#loc2)
      %c3_i32 = arith.constant 3 : i32 loc(#loc)
      %before = arith.constant dense<-1> : tensor<512xi32> loc(#loc)
      %range = tt.make_range {end = 512 : i32, start = 0 : i32} : tensor<512xi32> loc(#loc)
      %5 = tt.addptr %p, %c3_i32 : !tt.ptr<f32>, i32 loc(#loc2)
      %6 = tt.addptr %p, %before : tensor<512x!tt.ptr<f32>>, tensor<512xi32> loc(#loc2)
      %7 = tt.addptr %p, %range : tensor<512x!tt.ptr<f32>>, tensor<512xi32> loc(#loc2)
    """
    assert ahead_of_time.narrow_offsets(ttir) == 3


def test_the_table_has_a_line_for_each_report(reports: list[Report]) -> None:
    header, *rows = ahead_of_time.table(reports)
    assert header.split()[:3] == ["operation", "kernel", "target"]
    assert [row.split()[:3] for row in rows] == [[r.operation, r.kernel, r.target] for r in reports]


def test_the_document_has_every_variant(reports: list[Report]) -> None:
    """Whatever the version of Triton."""
    made, committed = table_rows(ahead_of_time.markdown(reports)), table_rows(DOCUMENT.read_text().splitlines())
    assert [row[:5] for row in made[1:]] == [row[:5] for row in committed[1:]], REGENERATE
    assert made[0] == committed[0] == [*made[0][:5], *ahead_of_time.TARGETS], REGENERATE
    assert sum(cell != "" for row in made[1:] for cell in row[5:]) == len(reports), "variants of one name"


def test_the_document_has_these_numbers(reports: list[Report]) -> None:
    skip_unless_made_with_this_triton()
    made, committed = ahead_of_time.markdown(reports), DOCUMENT.read_text().splitlines()
    changes = list(difflib.unified_diff(committed, made, "committed", "compiled now", lineterm="", n=0))
    if changes:
        pytest.fail("\n".join([REGENERATE, *changes]))


def test_the_document_is_made_with_the_newest_triton_that_is_installed() -> None:
    """Which is what a fresh environment has, so that there the numbers are compared and not skipped."""
    newest = re.search(r"^triton.*<=(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert newest and f"Triton {newest[1]} " in DOCUMENT.read_text(), REGENERATE


def test_variants_that_differ_in_types_alone_are_told_apart() -> None:
    one, other = (
        Report("op", "_kernel", "sm_90", {"out": "*fp32", "seed": kind}, {"K": 3, "MASKED": True}, 4, 32, 0, 0, 0, 0)
        for kind in ("i64", "*i64")
    )
    variants = {("op", "_kernel", "fp32", f"K=3 MASKED seed={kind}", "4") for kind in ("i64", "*i64")}
    assert set(ahead_of_time.by_variant([one, other])) == variants
    assert set(ahead_of_time.by_variant([one])) == {("op", "_kernel", "fp32", "K=3 MASKED", "4")}


@pytest.mark.parametrize(
    ("target", "registers", "num_warps", "shared", "programs"),
    [
        ("sm_90", 32, 8, 0, 8),  # all 64 warps
        ("sm_90", 33, 8, 0, 6),  # 40 registers a thread, in units of 256 a warp: 51 warps, and 48 of them in fours
        ("sm_90", 128, 8, 0, 2),
        ("sm_90", 255, 8, 0, 1),
        ("sm_90", 24, 1, 0, 32),  # no more programs than these, however small
        ("sm_80", 24, 4, 163 * 1024, 1),  # all that one program may have
        ("sm_80", 24, 4, 163 * 512 - 512, 2),  # two halves, and 1 KiB of the system's with each
        ("sm_80", 24, 4, 163 * 512 - 511, 1),
        ("gfx942", 24, 4, 0, None),
    ],
)
def test_resident_programs(target: str, registers: int, num_warps: int, shared: int, programs: int | None) -> None:
    report = Report("operation", "kernel", target, {}, {}, num_warps, registers, 0, shared, 0, 0)
    assert report.resident_programs == programs


def test_command_line_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for arguments, message in [
        (["--operation", "no_such_operation"], "no_such_operation"),
        (["--target", "sm_1"], "sm_80"),
        (["--json", "--markdown"], "not allowed"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            ahead_of_time.main(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        ahead_of_time.main([])
    assert "TRITON_INTERPRET" in capsys.readouterr().err
