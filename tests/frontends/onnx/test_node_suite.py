"""A spread of ONNX's own node tests, compiled and run: none of the baseline may fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# One name per line: every case that passed when `benchmarks.conformance` wrote the list.
BASELINE = (Path(__file__).parent / "node_tests_passing.txt").read_text().split()
STEP = 4
WORKERS = 2


def run_every(step: int, folder: Path) -> dict[str, dict[str, str]]:
    """Run every n-th case in a process of its own, which forks workers."""
    out = folder / "outcomes.json"
    command = [sys.executable, "-m", "benchmarks.conformance", "--workers", str(WORKERS)]
    command += ["--check-every", str(step), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run_every(STEP, tmp_path_factory.mktemp("suite"))


def test_the_spread_is_wide():
    assert len(BASELINE) >= 1700
    assert len(BASELINE[::STEP]) >= 400


@pytest.mark.parametrize("name", BASELINE[::STEP])
def test_case_still_passes(name, outcomes):
    assert outcomes[name] == {"status": "pass", "fresh": "none"}


@pytest.mark.slow
def test_every_case_still_passes(tmp_path):
    found = run_every(1, tmp_path)
    assert {name: item for name, item in found.items() if item["status"] != "pass"} == {}
