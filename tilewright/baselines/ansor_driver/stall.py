"""End this process where it and its workers do nothing: TVM's pool may wait for them for ever.

Seen on a crowded machine: a worker that is killed for taking too long, while it answers, leaves the
pool with a pipe that nobody writes to. What was measured is in the log, and can be gone on from.
"""

import os
import sys
import threading
from contextlib import contextmanager

import psutil

EXIT_CODE = 75  # "try again", EX_TEMPFAIL of sysexits.h
PATIENCE_S = 180.0
_LOOKS = 12
_WORKING_S = 0.01  # between two looks; looking itself takes about a millisecond


def _processor_s(process):
    """Return the processor seconds of a process and of all that it started and that still run."""
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@contextmanager
def watched(patience_s=PATIENCE_S):
    """End the process with `EXIT_CODE` where nothing in it works for `patience_s` seconds."""
    over = threading.Event()

    def look():
        process = psutil.Process()
        used, idle = _processor_s(process), 0
        while not over.wait(patience_s / _LOOKS):
            now = _processor_s(process)
            # Of workers that ended, the time is gone from the sum: that is work, too.
            works = abs(now - used) > _WORKING_S
            used, idle = now, 0 if works else idle + 1
            if idle == _LOOKS:
                print(
                    f"its workers did nothing for {patience_s:.0f} s", file=sys.stderr, flush=True
                )
                for worker in process.children(recursive=True):
                    worker.kill()
                os._exit(EXIT_CODE)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
