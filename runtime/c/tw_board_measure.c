/* tw_board_measure.c - run and time kernels on a board, on the threads and memory of the runtime.
 *
 * It runs in a process of its own, which may crash.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tw_board.h"
#define PEAK_VECTOR_BYTES 16
#define PEAK_CELLS 12
#define PEAK_STEPS 2000
#include "tw_measure.h"

enum { GUARD_BYTES = 4096, GUARD = 0xA5, QUICK_RUNS = 3, LEAST_ROUNDS = 3 };
#define SLOW_S 0.3 /* a kernel that takes longer is run once only */

/* A kernel reads as many arguments as it has. */
typedef int (*kernel)(void *, void *, void *, void *, void *, void *, void *, void *, void *,
                      void *, void *, void *, void *, void *, void *, void *, void *, void *,
                      void *, void *, void *, void *, void *, void *);

typedef struct runnable {
  const tw_entry *entry;
  kernel run;
  void *arguments[TW_MOST_ARGUMENTS];
  double best_s;
  int inner;
} runnable;

static tw_pool *pool;
static FILE *out;

static int failed(const char *text) {
  fprintf(out, "error %s\n", text);
  fflush(out);
  return 0;
}

static int call(const runnable *r) {
  void *const *a = r->arguments;
  return r->run(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12],
                a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20], a[21], a[22], a[23]);
}

/* Seconds of one of `inner` calls; negative if one failed. */
static double timed(const runnable *r, int inner) {
  int status = tw_pool_enter(pool);
  double start = now();
  for (int i = 0; i < inner && status == 0; ++i) status = call(r);
  double seconds = (now() - start) / inner;
  tw_pool_leave(status != 0);
  if (status != 0) return -1;
  return seconds > 1e-9 ? seconds : 1e-9;
}

extern int (*__TVMBackendParallelLaunch)(int (*)(int, void *, void *), void *, int);
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);

static const char *prepare(runnable *r, const tw_entry *entry, tw_elf *loaded) {
  r->entry = entry;
  const char *problem = tw_elf_load(entry->library->data, entry->library->size, loaded);
  if (problem) return problem;
  const struct {
    const char *name;
    void *value;
  } slots[] = {
      {"__TVMBackendParallelLaunch", *(void **)&__TVMBackendParallelLaunch},
      {"__TVMBackendAllocWorkspace", *(void **)&__TVMBackendAllocWorkspace},
      {"__TVMBackendFreeWorkspace", *(void **)&__TVMBackendFreeWorkspace},
  };
  for (size_t i = 0; i < sizeof slots / sizeof slots[0]; ++i) {
    void **slot = tw_elf_symbol(loaded, slots[i].name);
    if (slot) *slot = slots[i].value;
  }
  *(void **)&r->run = tw_elf_symbol(loaded, "tw_kernel_candidate");
  if (!r->run) return "it has no kernel";
  for (int i = 0; i < entry->count; ++i) {
    if (entry->inputs[i]) {
      r->arguments[i] = entry->inputs[i]->data;
      continue;
    }
    size_t size = (entry->sizes[i] + 2 * GUARD_BYTES + 63) / 64 * 64;
    char *memory = aligned_alloc(GUARD_BYTES, (size + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES);
    if (!memory) return "out of memory";
    memset(memory, GUARD, size);
    r->arguments[i] = memory + GUARD_BYTES;
  }
  return NULL;
}

static int is_guarded(const unsigned char *memory) {
  for (int i = 0; i < GUARD_BYTES; ++i)
    if (memory[i] != GUARD) return 0;
  return 1;
}

/* Whether nothing was written beside the outputs. */
static int stayed_inside(const runnable *r) {
  for (int i = 0; i < r->entry->count; ++i) {
    if (r->entry->inputs[i]) continue;
    const unsigned char *data = r->arguments[i];
    if (!is_guarded(data - GUARD_BYTES) || !is_guarded(data + r->entry->sizes[i])) return 0;
  }
  return 1;
}

static void write_outputs(const runnable *r) {
  for (int i = 0; i < r->entry->count; ++i) {
    if (r->entry->inputs[i]) continue;
    fprintf(out, "output %zu\n", r->entry->sizes[i]);
    fwrite(r->arguments[i], 1, r->entry->sizes[i], out);
  }
}

/* Run one kernel for the first time, and a few times more; its outputs and times are written. */
static int first_runs(runnable *r, int number, int want_outputs) {
  double seconds[1 + QUICK_RUNS];
  int count = 1;
  seconds[0] = timed(r, 1);
  if (seconds[0] < 0) return failed(tw_this_thread()->error);
  if (!stayed_inside(r)) return failed("it wrote outside of its outputs");
  if (want_outputs) write_outputs(r);
  if (seconds[0] < SLOW_S)
    while (count < 1 + QUICK_RUNS) seconds[count++] = timed(r, 1);
  r->best_s = seconds[0];
  fprintf(out, "times %d", number);
  for (int i = 0; i < count; ++i) {
    if (seconds[i] < r->best_s) r->best_s = seconds[i];
    fprintf(out, " %.9g", seconds[i]);
  }
  fputc('\n', out);
  return 1;
}

int tw_measure(const tw_request *request, int descriptor) {
  out = fdopen(descriptor, "wb");
  if (!out) return 1;
  if (request->threads == 1) clock_id = CLOCK_THREAD_CPUTIME_ID;
  if (tw_thread_state_init() != 0 || tw_threads_init() != 0) return failed("no pthread keys");
  pool = tw_pool_create(request->threads);
  if (!pool) return failed(tw_this_thread()->error);
  runnable *all = calloc((size_t)request->count, sizeof *all);
  tw_elf *loaded = calloc((size_t)request->count, sizeof *loaded);
  if (!all || !loaded) return failed("out of memory");
  double slowest = 1e-9;
  for (int i = 0; i < request->count; ++i) {
    const char *problem = prepare(&all[i], &request->entries[i], &loaded[i]);
    if (problem) return failed(problem);
    if (!first_runs(&all[i], i, request->want_outputs)) return 0;
    if (all[i].best_s > slowest) slowest = all[i].best_s;
    double share = request->budget_s / request->rounds;
    all[i].inner = all[i].best_s < share ? (int)(share / all[i].best_s) : 1;
  }
  int rounds = (int)(request->budget_s / slowest);
  if (rounds < LEAST_ROUNDS) rounds = LEAST_ROUNDS;
  if (rounds > request->rounds) rounds = request->rounds;
  for (int round = 0; round < rounds; ++round) {
    fprintf(out, "peak %.6g\n", peak());
    for (int i = 0; i < request->count; ++i) {
      if (request->limit_s > 0 && all[i].best_s > request->limit_s) continue;
      double seconds = timed(&all[i], all[i].inner);
      if (seconds < 0) return failed(tw_this_thread()->error);
      fprintf(out, "times %d %.9g\n", i, seconds);
    }
  }
  fflush(out);
  return 0;
}
