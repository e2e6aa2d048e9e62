"""Damage to bytes, and how a trial with damaged input ended."""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.mutations.trial import REFUSED, TRACEBACK, Trial
from tilewright.api import FAULT
from tilewright.errors import TilewrightError

Random = np.random.Generator


def one_line(error: BaseException, folder: Path) -> str:
    """Return the message of an error on one line, without the folder of this run."""
    text = " ".join(str(error).split())
    return text.replace(f"{folder}/", "").replace(str(folder), ".")[:300]


def attempt(job: Callable[[Path], Trial]) -> Trial:
    """Run a job in an empty folder; an error for people is a refusal, any other one a bug."""
    with (
        tempfile.TemporaryDirectory(prefix="tilewright-bad-") as name,
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")
        folder = Path(name)
        try:
            return job(folder)
        except TilewrightError as error:
            text = one_line(error, folder)
            return Trial(TRACEBACK if text.startswith(FAULT) else REFUSED, text)
        except Exception as error:  # the point of the exercise: nothing else may come out
            where = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in where if "/tilewright/" in frame.filename] or where
            place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            kind = type(error).__name__
            return Trial(TRACEBACK, f"{kind} at {place}: {one_line(error, folder)}")


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Flip, insert, delete, repeat, zero or cut, once to three times."""
    for _ in range(int(random.integers(1, 4))):
        data = _damage_once(data, random)
    return data


def _damage_once(data: bytes, random: Random) -> bytes:
    if not data:
        return random.bytes(3)
    at = int(random.integers(len(data)))
    length = int(min(random.integers(1, 200), len(data) - at))
    kind = int(random.integers(7))
    if kind <= 1:
        return flip(data, random)
    if kind == 2:
        return data[:at] + random.bytes(length) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[: at + length] + data[at:]
    if kind == 5:
        return data[:at] + bytes(length) + data[at + length :]
    return data[:at]


def flip(data: bytes, random: Random) -> bytes:
    """Flip one bit."""
    damaged = bytearray(data)
    damaged[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return bytes(damaged)
