"""What every command of the program has; the tests walk over all of them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer.core

import tilewright
from benchmarks.bad_input.command_lines import commands
from tilewright._cli_examples import EXAMPLES
from tilewright._cli_progress import Reporter

_ROOT = Path(tilewright.__file__).resolve().parent.parent
# They print a line or nothing; the others print what a program may want to read.
_WITHOUT_JSON = {
    *("report", "logs merge", "logs prune", "baseline install", "baseline remove"),
    "device serve",
}


COMMANDS = {" ".join(words): command for words, command in commands()}


def _options(command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize("words", COMMANDS)
def test_help_says_what_it_does_with_examples_and_for_every_option(cli, words) -> None:
    result = cli(*words.split(), "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"$ tilewright {words}" in " ".join(result.stdout.split())
    for parameter in COMMANDS[words].params:
        if isinstance(parameter, typer.core.TyperOption):
            assert parameter.help, parameter.opts


@pytest.mark.parametrize("words", COMMANDS)
def test_examples_use_options_that_exist(words) -> None:
    for line in EXAMPLES[words]:
        parts = shlex.split(line)
        assert parts[: 1 + len(words.split())] == ["tilewright", *words.split()]
        used = {part for part in parts if part.startswith("-")}
        assert used <= _options(COMMANDS[words])
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_debug_quiet_and_json_where_it_prints_a_table(words) -> None:
    options = _options(COMMANDS[words])
    assert {"--debug", "--quiet"} <= options
    assert ("--json" in options) == (words not in _WITHOUT_JSON)


@pytest.mark.parametrize("words", COMMANDS)
def test_wrong_usage_is_status_2_and_names_the_option(cli, words) -> None:
    result = cli(*words.split(), "--no-such-option")
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr
    assert "Traceback" not in result.output


_TAKES_A_FILE = {
    "compile": ("no.onnx", "-o", "out.so"),
    "run": ("no.so", "--random"),
    "inspect": ("no.onnx",),
    "bench": ("no.onnx",),
    "report": ("no.so", "-o", "out.html"),
    "quantize": ("no.onnx", "--calibration", "no.npz", "-o", "out.onnx"),
    "profile": ("no.so",),
    "explain": ("no.so",),
    "size": ("no.so",),
    "tune": ("no.onnx", "--trials", "1"),
    "verify": ("no.so", "no.onnx"),
    "debug-accuracy": ("no.onnx",),
    "logs show": ("no.jsonl",),
    "logs merge": ("out.jsonl", "no.jsonl"),
    "logs prune": ("no.jsonl",),
    "logs doctor": ("no.jsonl",),
}


@pytest.mark.parametrize("words", _TAKES_A_FILE)
def test_a_missing_file_is_status_1_and_one_line(cli, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*words.split(), *_TAKES_A_FILE[words])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "no." in result.stderr
    assert result.stdout == ""
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_quiet_prints_nothing_but_json(cli, model_path, module_path, tmp_path) -> None:
    out = tmp_path / "quiet.so"
    assert cli("compile", model_path, "-o", out, "--quiet").output == ""
    assert out.exists()
    assert cli("run", module_path, "--random", "-q").output == ""
    found = cli("run", module_path, "--random", "-q", "--json")
    assert json.loads(found.stdout)[0]["shape"] == [2, 5]
    assert "error: " in cli("run", tmp_path / "no.so", "--random", "-q").stderr


def test_compile_says_in_json_what_it_made(cli, model_path, tmp_path) -> None:
    result = cli("compile", model_path, "-o", tmp_path / "m.so", "--json", "--untuned")
    found = json.loads(result.stdout)
    assert found["file"].endswith("m.so")
    assert found["tuning"]["operators"][0]["reason"] == "there is no log"


@pytest.mark.parametrize(
    ("line", "expected"), [("tilewright comp", "compile"), ("tilewright verify --ag", "--against")]
)
def test_shell_completion_knows_commands_and_options(line, expected) -> None:
    variables = {
        "_TILEWRIGHT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tilewright"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == [expected]


def test_variables_are_documented() -> None:
    documented = (_ROOT / "docs" / "environment.md").read_text()
    found = {
        word
        for folder in ("tilewright", "compiler", "tuner", "frontends", "runtime")
        for path in (_ROOT / folder).rglob("*.[chp]*")
        if path.suffix in (".py", ".c", ".h") and not path.is_symlink()
        for word in path.read_text().split('"')
        if word.startswith("TILEWRIGHT_") and word.isidentifier()
    }
    assert {"TILEWRIGHT_NUM_THREADS", "TILEWRIGHT_SSH", "TILEWRIGHT_CUDA_DEVICE"} <= found
    assert {name for name in found if f"`{name}`" not in documented} == set()


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_estimates_the_time_left_from_counts() -> None:
    clock = _Clock()
    reporter = Reporter(clock)
    reporter("measuring, round 1 of 20")
    assert reporter.left_s() is None
    clock.now = 5.0
    reporter("measuring, round 6 of 20")
    assert reporter.left_s() == pytest.approx(15.0)
    assert "about 15 s left" in reporter.__rich__()


def test_progress_estimates_the_rest_of_a_compile() -> None:
    clock = _Clock()
    reporter = Reporter(clock)
    reporter("import")
    clock.now = 2.3
    reporter("schedules")
    assert reporter.left_s() == pytest.approx(7.7)
    clock.now = 3.5
    reporter("code generation")
    assert reporter.left_s() == pytest.approx(6.5)
    assert Reporter(clock).left_s() is None


_INTERRUPT_WHILE_LOADING = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
sys.meta_path.insert(0, Interrupt())
sys.argv = ["tilewright", "doctor"]
from tilewright.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["tilewright.cli", "typer", "tilewright._cli_trust"])
def test_ctrl_c_while_the_program_loads_shows_no_traceback(name) -> None:
    code = _INTERRUPT_WHILE_LOADING.format(name=name)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""


def test_ctrl_c_in_a_command_is_status_130(process) -> None:
    code = _INTERRUPT_WHILE_LOADING.format(name="tilewright.doctor")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
