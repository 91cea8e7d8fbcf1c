"""Every Triton kernel compiles for GPUs that are not there, within their registers and shared memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bayes_prompt.kernels import ahead_of_time

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    """From another process: in this one, kernels are interpreted ones where there is no GPU."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bayes_prompt.kernels.ahead_of_time", "--json"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_of_every_operation_is_compiled_for_every_target(reports: list[dict[str, Any]]) -> None:
    operations = {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    compiled = {(report["operation"], report["target"]) for report in reports}
    assert compiled == {(operation, target) for operation in operations for target in ahead_of_time.TARGETS}
    for operation in operations:
        source = (ROOT / "kernels" / operation / "triton.py").read_text()
        launched = set(re.findall(r"\b(_\w+)\[.*\]\(", source))
        assert launched
        assert launched <= {report["kernel"] for report in reports if report["operation"] == operation}


def test_nothing_is_spilled_with_three_states_and_little_elsewhere(reports: list[dict[str, Any]]) -> None:
    """Seen with Triton 3.6 and 3.9: 24 bytes a thread at most, in float64 or where keys break ties; K = 16 spills none.

    Assemblers spill a register or two of their own accord where that lets one program more run at a time.
    """
    for report in reports:
        assert report["spills"] <= 64, report
    published = [r for r in reports if r["operation"] == "progress_filter" and r["constants"]["K"] == 3]
    assert {(r["target"], r["spills"]) for r in published if "*fp32" in r["types"].values()} == {
        (target, 0) for target in ahead_of_time.TARGETS
    }


def test_programs_fit_a_processor(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["shared_bytes"] <= ahead_of_time.SHARED_BYTES[report["target"]], report
        # 65,536 32-bit registers a multiprocessor; AMD: 512 vector registers a lane of its four SIMD units.
        threads = 32 * report["num_warps"]
        assert 0 < report["registers"] * threads <= 65_536, report


def test_offsets_are_64_bits_wide(reports: list[dict[str, Any]]) -> None:
    """A pool of K states overflows 32 bits from 2**31 / K**2 prompts on."""
    for report in reports:
        assert report["narrow_offsets"] == 0, report


def test_narrow_offsets_are_found() -> None:
    ttir = """
      %0 = arith.muli %pid, %c512_i32 : i32 loc(#loc1)
      %1 = arith.muli %a, %b : tensor<512xi64> loc(#loc1)
      %2 = tt.addptr %p, %1 : tensor<512x!tt.ptr<f32>>, tensor<512xi64> loc(#loc2)
      %3 = tt.addptr %p, %0 : !tt.ptr<f32>, i32 loc(#loc2)
      %4 = tt.addptr %p, %q : tensor<4x512x!tt.ptr<f32>>, tensor<4x512xi32> loc(#loc2)
    """
    assert ahead_of_time.narrow_offsets(ttir) == 3


def test_the_table_has_a_line_for_each_report(reports: list[dict[str, Any]]) -> None:
    header, *rows = ahead_of_time.table([ahead_of_time.Report(**report) for report in reports])
    assert header.split()[:3] == ["operation", "kernel", "target"]
    assert [row.split()[:3] for row in rows] == [[r["operation"], r["kernel"], r["target"]] for r in reports]


def test_command_line_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for arguments, message in [
        (["--operation", "no_such_operation"], "no_such_operation"),
        (["--target", "sm_1"], "sm_80"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            ahead_of_time.main(arguments)
        assert message in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="2"):
        ahead_of_time.main([])
    assert "TRITON_INTERPRET" in capsys.readouterr().err
