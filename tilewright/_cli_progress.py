"""Progress on a terminal: the stage, the time that it took, and the time that is left."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from rich.console import Console

# What each stage of a compile takes of its processor time: ResNet-18, BERT-tiny and U-Net on AVX2,
# each within 0.03 of this.
_SHARES = {
    "import": 0.04,
    "graph passes": 0.12,
    "layouts": 0.07,
    "schedules": 0.12,
    "code generation": 0.65,
}
_COUNT = re.compile(r"(\d+) of (\d+)")
# Before this share is done, nothing is known about the rest.
_LEAST_SHARE = 0.04
_LEAST_S = 1.0
_SILENT: ContextVar[bool] = ContextVar("silent", default=False)


class Reporter:
    """What is shown at any moment; called with each stage.

    A stage of a compile has its usual share of the whole; one that says "3 of 20" is counted. Both
    give an estimate of the time left.

    Args:
        clock: seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = self._phase_start = clock()
        self._phase = ""
        self._first = 0
        self.stage = "starting"

    def __call__(self, stage: str) -> None:
        self.stage = stage
        phase = _COUNT.sub("", stage)
        if stage == "import":  # another compile begins
            self._start = self._clock()
        if phase != self._phase:
            self._phase, self._phase_start = phase, self._clock()
            count = _COUNT.search(stage)
            self._first = int(count[1]) if count else 0

    def left_s(self) -> float | None:
        """Return the estimate of the time left, or None where there is none."""
        count = _COUNT.search(self.stage)
        if count is not None and self.stage.partition(",")[0] not in _SHARES:
            done = (int(count[1]) - self._first) / max(1, int(count[2]) - self._first + 1)
            return self._rest(done, self._clock() - self._phase_start)
        stage = self.stage.partition(",")[0]
        if stage in _SHARES:
            names = list(_SHARES)
            before = sum(_SHARES[name] for name in names[: names.index(stage)])
            inside = (int(count[1]) - 1) / max(1, int(count[2])) if count is not None else 0.0
            spent = self._clock() - self._start
            if count is None and before:  # it goes on: assume the pace of the stages before
                pace = (self._phase_start - self._start) / before
                return max(0.0, pace - spent) if spent >= _LEAST_S else None
            return self._rest(before + inside * _SHARES[stage], spent)
        return None

    @staticmethod
    def _rest(done: float, spent: float) -> float | None:
        if done < _LEAST_SHARE or spent < _LEAST_S:
            return None
        return spent * (1 - done) / done

    def __rich__(self) -> str:
        """Return the line as it is now; rich asks for it many times a second."""
        spent, left = self._clock() - self._start, self.left_s()
        text = f"{self.stage}, {spent:.0f} s" if spent >= _LEAST_S else self.stage
        text = text.replace("[", "\\[")
        return text if left is None else f"{text}, about {max(1.0, left):.0f} s left"


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Show the stage on a terminal; say nothing elsewhere, so that logs hold only errors."""
    console = Console(stderr=True)
    if not console.is_terminal or _SILENT.get():
        yield lambda _stage: None
        return
    reporter = Reporter()
    with console.status(reporter):
        yield reporter


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Show no progress inside."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def is_silent() -> bool:
    """Say whether progress is switched off."""
    return _SILENT.get()
