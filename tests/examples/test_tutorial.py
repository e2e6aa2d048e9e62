"""Every command and every snippet of the tutorial runs, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tilewright.cli import app

_ROOT = Path(__file__).parents[2]
_STEPS = re.compile(r"^    \$ tilewright (.+?)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["docs/tutorial.md"])
def test_every_step_of_the_page_works(page, tmp_path, monkeypatch):
    shutil.copy(_ROOT / "examples" / "digits_cnn.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    steps = list(_STEPS.finditer((_ROOT / page).read_text()))
    assert len(steps) > 15
    for step in steps:
        command, snippet = step.groups()
        if snippet:
            exec(compile(snippet, page, "exec"), {})
            continue
        result = CliRunner().invoke(app, shlex.split(command))
        assert result.exit_code == 0, f"tilewright {command}\n{result.output}"
