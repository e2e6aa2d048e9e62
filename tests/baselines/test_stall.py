"""Ansor's process ends itself where its workers hang, and a tuning is started again."""

import subprocess
import sys
from pathlib import Path

import pytest

from tilewright.baselines import ansor
from tilewright.baselines.environment import Environment
from tilewright.errors import MeasureError

_DRIVER = Path(ansor.__file__).parent / "ansor_driver"
_WATCHED = "import time; from stall import watched\nwith watched({patience}): {body}"


def _run(body: str, patience: float) -> subprocess.CompletedProcess[str]:
    code = _WATCHED.format(patience=patience, body=body)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=_DRIVER, capture_output=True, text=True, check=False)


def test_a_process_that_does_nothing_ends():
    done = _run("time.sleep(600)", 1.2)
    assert done.returncode == ansor._STALLED
    assert "did nothing" in done.stderr


def test_a_process_that_works_goes_on():
    loop = "end = time.process_time() + 3\n while time.process_time() < end: pass"
    done = _run("\n " + loop, 1.2)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Return a driver whose process stalls as often as the file "stalls" has letters."""
    (tmp_path / "__main__.py").write_text(
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "left = Path(__file__).with_name('stalls')\n"
        "for line in sys.stdin:\n"
        "    if text := left.read_text():\n"
        "        left.write_text(text[1:])\n"
        "        os._exit(75)\n"
        "    print(json.dumps({'done': json.loads(line)}), flush=True)\n"
    )

    class Here(Environment):
        def missing(self):
            return None

        @property
        def python(self):
            return Path(sys.executable)

    monkeypatch.setattr(ansor, "_DRIVER", tmp_path)

    def start(stalls: int) -> ansor.Driver:
        (tmp_path / "stalls").write_text("s" * stalls)
        return ansor.Driver(Here(tmp_path))

    return start


def test_tuning_goes_on_after_a_stall(driver):
    found = driver(2)
    assert found.ask("tune", trials=7)["trials"] == 7
    found.close()


def test_many_stalls_and_other_requests_are_errors(driver):
    for stalls, request in ((4, "tune"), (1, "load")):
        found = driver(stalls)
        with pytest.raises(MeasureError, match=f"ended in '{request}'"):
            found.ask(request)
        found.close()
