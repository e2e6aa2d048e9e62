"""Small C library that calls and times kernels inside the timing process.

It holds the thread pool and scratch memory of the runtime, so that candidates run on what they
will run on in a module.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tilewright.compiler.targets import Target
from tilewright.compiler.toolchain import run_c_compiler
from tilewright.tuner.worker.run import MAX_ARGUMENTS

_SOURCES = ("tw_threads.c", "tw_thread_state.c", "tw_memory.c")
_FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-pthread")
_SOURCE = """
#include <stdlib.h>
#include <string.h>
#define PEAK_VECTOR_BYTES %(vector_bytes)d
#define PEAK_CELLS %(cells)d
#define PEAK_STEPS 20000
#include "tw_measure.h"

double harness_peak(void) { return peak(); }

static tw_pool *pool;

int harness_start(int threads) {
  if (threads == 1) clock_id = CLOCK_THREAD_CPUTIME_ID;
  if (tw_thread_state_init() != 0 || tw_threads_init() != 0) return -1;
  pool = tw_pool_create(threads);
  return pool ? 0 : -1;
}

const char *harness_error(void) { return tw_this_thread()->error; }

/* A kernel reads as many arguments as it has; the others cost a nanosecond. */
typedef int (*kernel)(%(types)s);

static int call(kernel f, void **a) { return f(%(arguments)s); }

/* Call `inner` times, with the next of `sets` sets of arguments each time; `repeats` times. */
int harness_time(void *f, void **arguments, long sets, long inner, long repeats, char *flush,
                 size_t flush_bytes, double *seconds) {
  int status = tw_pool_enter(pool);
  long set = 0;
  for (long r = 0; r < repeats && status == 0; ++r) {
    for (size_t i = 0; i < flush_bytes; i += 64) flush[i] += 1;
    double start = now();
    for (long i = 0; i < inner && status == 0; ++i) {
      status = call((kernel)f, arguments + set * %(count)d);
      set = set + 1 == sets ? 0 : set + 1;
    }
    seconds[r] = (now() - start) / inner;
  }
  tw_pool_leave(status != 0);
  return status;
}
"""


def build_harness(folder: Path, target: Target) -> Path:
    """Compile the library into a folder and return its path.

    Args:
        folder: where to write.
        target: whose vectors the peak is measured with.

    Raises:
        TargetError: there is no C compiler.
        CompileError: it failed.
    """
    source = folder / "harness.c"
    library = folder / "harness.so"
    source.write_text(
        _SOURCE
        % {
            "vector_bytes": target.vector_bits // 8,
            # Enough to hide the latency of a multiply-add on two pipes.
            "cells": 12 if target.vector_registers == 16 else 24,
            "types": ", ".join(["void *"] * MAX_ARGUMENTS),
            "arguments": ", ".join(f"a[{i}]" for i in range(MAX_ARGUMENTS)),
            "count": MAX_ARGUMENTS,
        }
    )
    sources = resources.files("tilewright.runtime") / "c"
    with resources.as_file(sources) as runtime:
        run_c_compiler(
            [
                *_FLAGS,
                *_vector_flags(target),
                f"-I{runtime}",
                source,
                *(runtime / name for name in _SOURCES),
                *("-o", library),
            ]
        )
    return library


def _vector_flags(target: Target) -> tuple[str, ...]:
    if target.architecture != "x86_64":
        return ()  # vectors of NEON are part of every aarch64 processor
    return ("-mavx512f" if "avx512f" in target.features else "-mavx2", "-mfma")
