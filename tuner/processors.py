"""Which processors time candidates and which build them, so that building never disturbs a timing.

The timing process gets processors of its own. A building process that would share them, or be the
second thread of one of their cores, is stopped while candidates are timed; all others work on.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import MeasureError

_TOPOLOGY = Path("/sys/devices/system/cpu")
# Each building process holds TVM: 0.3 GB.
_MOST_BUILDERS = 8


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the processes of a tuner run.

    Attributes:
        timing: processor that timing is pinned to; None: wherever the system puts it.
        free: processors of building processes that go on while candidates are timed.
        shared: those of building processes that are stopped meanwhile; None is any processor.
    """

    timing: int | None
    free: tuple[int, ...]
    shared: tuple[int | None, ...]


def place(threads: int, builders: int | None, cpu: int | None, exclusive: bool) -> Placement:
    """Decide where the processes run.

    Args:
        threads: that a kernel may use; with several none is pinned, and building stops for timing.
        builders: building processes, at most; None: one for each processor.
        cpu: processor to time on; None: the last that this process may use.
        exclusive: nothing may build on the timing processor at any time.

    Raises:
        MeasureError: there is no such processor.
    """
    allowed = sorted(os.sched_getaffinity(0))
    most = min(_MOST_BUILDERS, len(allowed)) if builders is None else max(1, builders)
    known = os.cpu_count() or 1
    if cpu is not None and not 0 <= cpu < known:
        raise MeasureError(f"there is no processor {cpu}; this machine has 0 to {known - 1}")
    if threads > 1 or (cpu is None and len(allowed) == 1):
        return Placement(cpu, (), (None,) * most)
    timing = allowed[-1] if cpu is None else cpu
    core = _threads_of_core(timing)
    free = tuple(other for other in allowed if other not in core)[:most]
    shared = tuple(other for other in allowed if other in core)
    if exclusive and free:
        shared = ()
    return Placement(timing, free, shared[: most - len(free)])


def _threads_of_core(cpu: int) -> Collection[int]:
    """Return the processors that are threads of the same core, itself included."""
    path = _TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    try:
        text = path.read_text().strip()
    except OSError:
        return {cpu}
    found = {cpu}
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
