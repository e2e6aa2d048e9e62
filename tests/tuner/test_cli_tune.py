"""The tuning commands print what their functions return, and one line for a mistake."""

import json
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tests.tuner.helpers import make_record
from tilewright._cli_tuning_tables import print_result
from tilewright.cli import app
from tilewright.compiler.schedule import generation
from tilewright.errors import LogError
from tilewright.tuner import Log, TuneResult


@pytest.fixture
def log(tmp_path):
    made = Log(tmp_path / "log.jsonl")
    task = {"name": "matmul", "axes": [4, 8], "macs": 1000}
    made.append([make_record(1e-3, task=task), make_record(2e-3, task=task)])
    return made


def _run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_show_prints_the_best_record_of_each_task(log):
    result = _run("logs", "show", log.path)
    assert result.exit_code == 0, result.output
    assert "matmul" in result.output
    assert "1.00 ms" in result.output
    rows = json.loads(_run("logs", "show", log.path, "--json").output)
    assert [row["records"] for row in rows] == [2]


def test_show_says_what_it_skipped(log):
    with open(log.path, "ab") as file:
        file.write(b"{torn\n")
    result = _run("logs", "show", log.path)
    assert result.exit_code == 0, result.output
    assert "skipped 1 damaged" in result.stderr


def test_a_session_that_measured_nothing_says_so(tmp_path, capsys):
    nothing = TuneResult(tmp_path / "log.jsonl", (), 0.0, 0.0, 0, 3.0, "interrupted", ())
    print_result(nothing, as_json=False)
    assert "nothing was measured, 0 trials in 3 s, stopped: interrupted" in capsys.readouterr().out


def test_a_log_that_cannot_be_written_is_an_exit_status(tmp_path, monkeypatch):
    def refuse(_log, _records):
        raise LogError("cannot write log.jsonl: No space left on device")

    monkeypatch.setattr(Log, "append", refuse)
    shapes = ("--data", "5,6", "--weight", "6,7", "--trials", "2")
    result = _run("tune-op", "matmul", *shapes, "--log", tmp_path / "log.jsonl")
    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert "records are not in" in result.stderr
    assert "all tasks" in result.stdout


def test_doctor_explains_and_repairs(log):
    with open(log.path, "ab") as file:
        file.write(b"{torn\n")
    result = _run("logs", "doctor", log.path)
    assert result.exit_code == 1
    assert f"{log.path}:3: torn or not JSON" in result.output
    assert _run("logs", "doctor", log.path, "--repair").exit_code == 0
    assert _run("logs", "doctor", log.path).output.endswith("2 records, 0 lines skipped\n")


def test_doctor_counts_records_of_older_kernels(log, monkeypatch):
    monkeypatch.setitem(generation._GENERATIONS, "contraction", 99)
    result = _run("logs", "doctor", log.path)
    assert result.exit_code == 0
    assert "2 records are of older kernels" in result.output
    assert json.loads(_run("logs", "doctor", log.path, "--json").output)["outgrown"] == 2


def test_prune_and_merge_say_what_they_did(log, tmp_path):
    assert "1 of 2 lines kept" in _run("logs", "prune", log.path).output
    merged = tmp_path / "merged.jsonl"
    assert f"{merged}: 1 records added" in _run("logs", "merge", merged, log.path).output


def test_ls_is_json_on_request(monkeypatch, log):
    monkeypatch.setattr("tilewright.tuner.default_logs", lambda: [log.path])
    (row,) = json.loads(_run("logs", "ls", "--json").output)
    assert row["records"] == 2
    assert row["skipped"] == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("logs", "show", "none.jsonl"), 1, "no such file"),
        (("tune", "none.onnx", "--trials", "1"), 1, "none.onnx"),
        (("tune", "none.onnx", "--time", "soon"), 2, "expected a time such as 90s"),
        (("tune", "none.onnx", "--strategy", "luck"), 2, "expected one of cross"),
        (("tune-op", "conv9d", "--data", "1", "--weight", "1"), 2, "expected one of conv1d"),
        (("tune-op", "matmul", "--data", "a", "--weight", "1"), 2, "expected positive numbers"),
        (
            ("tune-op", "conv2d", "--data", "1,2", "--weight", "1,2"),
            1,
            "takes data and weight of 4",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, status, message):
    result = _run(*arguments)
    assert result.exit_code == status
    assert message in " ".join(result.output.replace("│", " ").split())


_INTERRUPT_WHILE_LOADING = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "tilewright.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from tilewright.__main__ import main
main()
"""


def test_interrupt_while_the_command_line_loads_ends_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPT_WHILE_LOADING],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
