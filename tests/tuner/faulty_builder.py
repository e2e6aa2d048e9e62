"""A building process whose candidates misbehave where their schedule says so."""

import os
import subprocess
import time
from pathlib import Path

from tilewright.tuner.worker import build

_HEAD = "#include <stdlib.h>\nint tw_kernel_candidate(float *x, float *w, float *y) {"
_BODIES = {
    "segfault": "*(volatile int *)8 = 1; return 0;",
    "spin": "for (volatile int i = 1; i;) {} return 0;",
    "allocate": "for (;;) { char *p = malloc(1 << 26); if (!p) return -1; p[0] = 1; }",
    "wrong": "y[0] = 1; return 0;",
    "overrun": "y[-1] = 1; return 0;",
    "fail": "return -1;",
}


def handlers(config):
    """Return the usual commands, with `build` wrapped."""
    commands = build.handlers(config)
    honest = commands["build"]

    def faulty(task, target, layouts, schedule_json, out, trusted):
        fault = (schedule_json or {}).get("fault")
        if fault == "build crash":
            os.abort()
        if fault == "build hang":
            time.sleep(1000)
        if fault == "build error":
            raise ValueError("no such tile")
        if fault is None:
            return honest(task, target, layouts, schedule_json, out, trusted)
        source = Path(out).with_suffix(".c")
        source.write_text(_HEAD + _BODIES[fault] + "}")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", out, source], check=True)
        return {"library": out, "rejected": "", "seconds": 0.01}

    return {**commands, "build": faulty}
