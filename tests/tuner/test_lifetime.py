"""A process that serves another one does not outlive it."""

import subprocess
import sys
import time
from pathlib import Path

_SERVANT = """
import time
from tilewright.tuner.worker.lifetime import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(600)
"""
_MASTER = """
import subprocess, sys
servant = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
servant.stdout.readline()
print(servant.pid, flush=True)
sys.stdin.read()
"""
_PATIENCE_S = 60


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_servant_ends_when_its_master_is_killed():
    master = subprocess.Popen(
        [sys.executable, "-c", _MASTER, _SERVANT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert master.stdout is not None
    servant = int(master.stdout.readline())
    assert _runs(servant)
    master.kill()
    master.communicate()
    end = time.monotonic() + _PATIENCE_S
    while _runs(servant) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(servant)
