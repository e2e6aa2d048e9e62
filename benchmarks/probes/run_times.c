/* Run a compiled module several times on zeros: `run_times model.so 3`. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tilewright.h"

static void *zeros(uint64_t size_bytes) {
  uint64_t whole = (size_bytes / 64 + 1) * 64;
  void *data = aligned_alloc(64, whole);
  return data ? memset(data, 0, whole) : NULL;
}

int main(int argc, char **argv) {
  tilewright_module *module = argc == 3 ? tilewright_open(argv[1], 0) : NULL;
  if (!module) {
    fprintf(stderr, "%s\n", argc == 3 ? tilewright_error() : "usage: run_times model.so times");
    return 1;
  }
  tilewright_context *context = tilewright_context_create(module, 1);
  const void *inputs[tilewright_num_inputs(module) + 1];
  void *outputs[tilewright_num_outputs(module) + 1];
  for (uint32_t i = 0; i < tilewright_num_inputs(module); ++i)
    inputs[i] = zeros(tilewright_input(module, i)->size_bytes);
  for (uint32_t i = 0; i < tilewright_num_outputs(module); ++i)
    outputs[i] = zeros(tilewright_output(module, i)->size_bytes);
  for (int i = atoi(argv[2]); i > 0; --i)
    if (tilewright_run(module, context, inputs, outputs)) {
      fprintf(stderr, "%s\n", tilewright_error());
      return 1;
    }
  return 0;
}
