"""Search layouts and loop schedules together, and log what was measured."""

from tilewright.tuner.candidate import Candidate
from tilewright.tuner.log import Log
from tilewright.tuner.lookup import Coverage, Lookup, default_logs, user_log
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
from tilewright.tuner.session import Session, TaskState, TuneOptions, tune_tasks
from tilewright.tuner.tune import TaskResult, TuneResult, tune

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
    "TuneOptions",
    "TuneResult",
    "Tuner",
    "default_logs",
    "tune",
    "tune_tasks",
    "user_log",
]
