"""How long a process lives that only serves another one."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let the system kill this process when the thread that started it ends, however it ends.

    Linux only (`prctl`); what was killed cannot tell its children to stop.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
