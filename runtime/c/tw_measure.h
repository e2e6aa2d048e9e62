/* tw_measure.h - the clock of a program that times kernels, and what its processor can do at most.
 *
 * Included once, by such a program; not part of a module. Before it: PEAK_VECTOR_BYTES (of a
 * register), PEAK_CELLS (accumulators, which fill the registers), PEAK_STEPS.
 */
#ifndef TW_MEASURE_H
#define TW_MEASURE_H
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "tw_runtime.h"

int tw_fail(const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(tw_this_thread()->error, sizeof tw_this_thread()->error, format, list);
  va_end(list);
  return -1;
}

/* With one thread the clock stops while other programs have the processor. */
static clockid_t clock_id = CLOCK_MONOTONIC;

static double now(void) {
  struct timespec t;
  clock_gettime(clock_id, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef float vector __attribute__((vector_size(PEAK_VECTOR_BYTES)));
static volatile float sink;

/* Multiply-adds in registers: operations a second of one thread, right now. */
static double peak(void) {
  vector a[PEAK_CELLS], b, c;
  for (int i = 0; i < PEAK_CELLS; ++i) a[i] = (vector){0} + (float)i * 1e-9f;
  b = (vector){0} + 1.0f, c = (vector){0} + 1e-9f;
  double start = now();
  for (int k = 0; k < PEAK_STEPS; ++k) {
#pragma GCC unroll 32
    for (int i = 0; i < PEAK_CELLS; ++i) a[i] = a[i] * b + c;
  }
  double seconds = now() - start;
  for (int i = 1; i < PEAK_CELLS; ++i) a[0] += a[i];
  sink = a[0][0];
  double operations = 2.0 * PEAK_STEPS * PEAK_CELLS * (sizeof(vector) / sizeof(float));
  return operations / (seconds > 0 ? seconds : 1e-9);
}
#endif
