"""Every command and every snippet of the tutorial runs, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.bad_input.command_lines import commands
from tilewright.cli import app

_ROOT = Path(__file__).parents[2]
_STEPS = re.compile(
    r"^    \$ tilewright (.+?)$|^    \$ (.+?)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")
# Least number of steps: a page whose steps are not found would pass untested.
_PAGES = {"docs/tutorial.md": 16, "docs/how-to/quantize.md": 11, "docs/how-to/embed-in-c.md": 7}


@pytest.mark.parametrize("page", _PAGES)
def test_every_step_of_the_page_works(page, tmp_path, monkeypatch):
    shutil.copy(_ROOT / "examples" / "digits_cnn.onnx", tmp_path)
    for folder in ("examples", "runtime"):  # the pages run in a clone
        (tmp_path / folder).symlink_to(_ROOT / folder)
    monkeypatch.chdir(tmp_path)
    steps = list(_STEPS.finditer((_ROOT / page).read_text()))
    assert len(steps) >= _PAGES[page]
    for step in steps:
        command, other, snippet = step.groups()
        if snippet:
            exec(compile(snippet, page, "exec"), {})
            continue
        if other:
            subprocess.run(other, shell=True, check=True, capture_output=True)
            continue
        result = CliRunner().invoke(app, shlex.split(command))
        assert result.exit_code == 0, f"tilewright {command}\n{result.output}"


@pytest.mark.parametrize(
    "page",
    ["README.md", *(str(p.relative_to(_ROOT)) for p in sorted((_ROOT / "docs").rglob("*.md")))],
)
def test_links_between_pages_lead_somewhere(page):
    for target in _LINK.findall((_ROOT / page).read_text()):
        if "://" not in target:
            assert ((_ROOT / page).parent / target).exists(), target


def test_commands_on_the_pages_exist(cli_options):
    """Every `tilewright ...` in a block of a page names a command and options that exist."""
    for page in sorted((_ROOT / "docs").rglob("*.md")):
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ {4,}(?:\$ )?tilewright (.+)$", text, re.MULTILINE):
            words = shlex.split(line.split("  #")[0].split(" > ")[0])
            name = " ".join(words[: 2 if words[0] in ("logs", "baseline", "device") else 1])
            assert name in cli_options, f"{page.name}: tilewright {line}"
            used = {word for word in words if word.startswith("-") and len(word) > 1}
            assert used <= cli_options[name], f"{page.name}: tilewright {line}"


def test_api_page_is_current():
    done = subprocess.run([sys.executable, _ROOT / "docs" / "make_api.py", "--check"], check=False)
    assert done.returncode == 0, "run: python docs/make_api.py"


@pytest.fixture
def cli_options():
    """Return the options of each command."""
    return {
        " ".join(words): {option for parameter in command.params for option in parameter.opts}
        | {"--help"}
        for words, command in commands()
    }
