/* Exercise the C interface of a module y = f(x), for sanitizers: driver module.so [no-fork] */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tilewright.h"

#define CALLERS 4
#define RUNS 40

static tilewright_module *module;
static float *expected;
static uint64_t in_bytes, out_bytes;

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) {                                                      \
      fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, tilewright_error()); \
      exit(1);                                                               \
    }                                                                        \
  } while (0)

static void fill(float *x) {
  for (uint64_t i = 0; i < in_bytes / sizeof *x; ++i) x[i] = (float)(i % 17) - 8.0f;
}

/* Run on buffers that start `offset` bytes behind an aligned address. */
static void run_at(tilewright_context *context, size_t offset) {
  char *in = aligned_alloc(64, (in_bytes + offset) / 64 * 64 + 64);
  char *out = aligned_alloc(64, (out_bytes + offset) / 64 * 64 + 64);
  CHECK(in && out);
  fill((float *)(in + offset));
  const void *inputs[] = {in + offset};
  void *outputs[] = {out + offset};
  CHECK(tilewright_run(module, context, inputs, outputs) == 0);
  CHECK(memcmp(out + offset, expected, out_bytes) == 0);
  free(in);
  free(out);
}

static void *call(void *threads) {
  tilewright_context *context = tilewright_context_create(module, *(int *)threads);
  CHECK(context);
  for (int i = 0; i < RUNS; ++i) run_at(context, i % 3 ? 0 : 4);
  CHECK(tilewright_context_destroy(module, context) == 0);
  return NULL;
}

static void check_errors(const char *path, tilewright_context *context) {
  const void *inputs[] = {NULL};
  void *outputs[] = {expected};
  CHECK(tilewright_run(module, context, inputs, outputs) != 0);
  CHECK(strstr(tilewright_error(), "is NULL"));
  CHECK(tilewright_close(module) != 0);
  CHECK(strstr(tilewright_error(), "contexts still exist"));
  CHECK(!tilewright_open("/nonexistent/module.so", 0));
  CHECK(!tilewright_open("/proc/self/exe", 0));
  CHECK(strstr(tilewright_error(), "not a tilewright module"));
  CHECK(!tilewright_input(module, 1000));
  CHECK(strchr(tilewright_describe(module), '{'));
  CHECK(path[0]);
}

int main(int argc, char **argv) {
  pthread_t callers[CALLERS];
  int threads[CALLERS] = {1, 2, 3, 4};
  CHECK(argc >= 2);
  for (int round = 0; round < 2; ++round) {
    module = tilewright_open(argv[1], TILEWRIGHT_VERIFY_WEIGHTS);
    CHECK(module);
    in_bytes = tilewright_input(module, 0)->size_bytes;
    out_bytes = tilewright_output(module, 0)->size_bytes;
    expected = aligned_alloc(64, out_bytes / 64 * 64 + 64);
    float *x = aligned_alloc(64, in_bytes / 64 * 64 + 64);
    tilewright_context *context = tilewright_context_create(module, 3);
    CHECK(expected && x && context);
    fill(x);
    const void *inputs[] = {x};
    void *outputs[] = {expected};
    CHECK(tilewright_run(module, context, inputs, outputs) == 0);
    check_errors(argv[1], context);

    for (int i = 0; i < CALLERS; ++i)
      CHECK(pthread_create(&callers[i], NULL, call, &threads[i]) == 0);
    for (int i = 0; i < CALLERS; ++i) pthread_join(callers[i], NULL);

    if (argc == 2) {
      pid_t child = fork();
      CHECK(child >= 0);
      if (child == 0) {
        run_at(context, 0);
        _exit(tilewright_context_destroy(module, context));
      }
      int status;
      CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
      CHECK(WEXITSTATUS(status) == 0);
    }
    run_at(context, 0);
    CHECK(tilewright_context_destroy(module, context) == 0);
    CHECK(tilewright_close(module) == 0);
    free(expected);
    free(x);
  }
  puts("ok");
  return 0;
}
