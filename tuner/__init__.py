"""Search layouts and loop schedules together, and log what was measured.

Names are imported when they are first used: a worker process needs few of them, and starts sooner.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.tuner.candidate import Candidate
    from tilewright.tuner.log import Log
    from tilewright.tuner.lookup import Coverage, Lookup, default_logs, user_log
    from tilewright.tuner.loop import tune_tasks
    from tilewright.tuner.measure import Measurement, MeasureOptions, Measurer
    from tilewright.tuner.records import Record
    from tilewright.tuner.search import (
        CrossExploration,
        Evolutionary,
        Exhaustive,
        Explorer,
        RandomSearch,
        Tuner,
    )
    from tilewright.tuner.session import Session, TaskState, TuneOptions
    from tilewright.tuner.timing import Timer
    from tilewright.tuner.tune_model import TaskResult, TuneResult, tune

__all__ = [
    "Candidate",
    "Coverage",
    "CrossExploration",
    "Evolutionary",
    "Exhaustive",
    "Explorer",
    "Log",
    "Lookup",
    "MeasureOptions",
    "Measurement",
    "Measurer",
    "RandomSearch",
    "Record",
    "Session",
    "TaskResult",
    "TaskState",
    "Timer",
    "TuneOptions",
    "TuneResult",
    "Tuner",
    "default_logs",
    "tune",
    "tune_tasks",
    "user_log",
]

_NAMES = {
    "candidate": ("Candidate",),
    "log": ("Log",),
    "loop": ("tune_tasks",),
    "lookup": ("Coverage", "Lookup", "default_logs", "user_log"),
    "measure": ("MeasureOptions", "Measurement", "Measurer"),
    "records": ("Record",),
    "search": (
        *("CrossExploration", "Evolutionary", "Exhaustive", "Explorer", "RandomSearch"),
        "Tuner",
    ),
    "session": ("Session", "TaskState", "TuneOptions"),
    "timing": ("Timer",),
    "tune_model": ("TaskResult", "TuneResult", "tune"),
}
_HOME = {name: f"tilewright.tuner.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tilewright.tuner' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
