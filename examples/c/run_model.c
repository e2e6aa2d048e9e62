/* Run a compiled module on raw input files and write raw output files.
 *
 *     cc -I../../runtime/c run_model.c -o run_model -ldl
 *     ./run_model model.so input0.bin [input1.bin ...]      writes output0.bin, output1.bin, ...
 *
 * An input file holds the bytes of one tensor, row-major, as numpy's tofile() writes them.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tilewright.h"

static void print_tensor(const char *kind, const tilewright_tensor *tensor) {
  printf("%s %s: %s [", kind, tensor->name, tensor->dtype);
  for (uint32_t i = 0; i < tensor->ndim; ++i)
    printf("%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
  printf("]\n");
}

/* What malloc gives is aligned well enough to be used in place; whole cache lines are faster. */
static void *allocate(uint64_t size_bytes) { return aligned_alloc(64, (size_bytes / 64 + 1) * 64); }

static int read_file(const char *path, void *data, uint64_t size_bytes) {
  FILE *file = fopen(path, "rb");
  size_t got = file ? fread(data, 1, size_bytes, file) : 0;
  int complete = file && got == size_bytes && fgetc(file) == EOF;
  if (file) fclose(file);
  if (!complete)
    fprintf(stderr, "%s: cannot read exactly %llu bytes\n", path, (unsigned long long)size_bytes);
  return complete ? 0 : -1;
}

static int write_file(const char *path, const void *data, uint64_t size_bytes) {
  FILE *file = fopen(path, "wb");
  int complete = file && fwrite(data, 1, size_bytes, file) == size_bytes;
  if (file && fclose(file) != 0) complete = 0;
  if (!complete) fprintf(stderr, "%s: cannot write\n", path);
  return complete ? 0 : -1;
}

static int run(const tilewright_module *module, tilewright_context *context, void **inputs,
               void **outputs, char **input_paths) {
  for (uint32_t i = 0; i < tilewright_num_inputs(module); ++i) {
    const tilewright_tensor *tensor = tilewright_input(module, i);
    print_tensor("input ", tensor);
    inputs[i] = allocate(tensor->size_bytes);
    if (!inputs[i] || read_file(input_paths[i], inputs[i], tensor->size_bytes)) return 1;
  }
  for (uint32_t i = 0; i < tilewright_num_outputs(module); ++i) {
    const tilewright_tensor *tensor = tilewright_output(module, i);
    print_tensor("output", tensor);
    outputs[i] = allocate(tensor->size_bytes);
    if (!outputs[i]) return 1;
  }
  if (tilewright_run(module, context, (const void *const *)inputs, outputs)) {
    fprintf(stderr, "%s\n", tilewright_error());
    return 1;
  }
  for (uint32_t i = 0; i < tilewright_num_outputs(module); ++i) {
    char path[32];
    snprintf(path, sizeof path, "output%u.bin", (unsigned)i);
    if (write_file(path, outputs[i], tilewright_output(module, i)->size_bytes)) return 1;
    printf("wrote %s\n", path);
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s model.so input0.bin [input1.bin ...]\n", argv[0]);
    return 2;
  }
  tilewright_module *module = tilewright_open(argv[1], 0);
  if (!module) {
    fprintf(stderr, "%s\n", tilewright_error());
    return 1;
  }
  uint32_t num_inputs = tilewright_num_inputs(module);
  uint32_t num_outputs = tilewright_num_outputs(module);
  int status = 1;
  tilewright_context *context = tilewright_context_create(module, 0);
  void **inputs = calloc(num_inputs + 1, sizeof *inputs);
  void **outputs = calloc(num_outputs + 1, sizeof *outputs);
  if (!context) {
    fprintf(stderr, "%s\n", tilewright_error());
  } else if ((uint32_t)argc - 2 != num_inputs) {
    fprintf(stderr, "%d input files are given, the module takes %u\n", argc - 2,
            (unsigned)num_inputs);
  } else if (inputs && outputs) {
    status = run(module, context, inputs, outputs, argv + 2);
  }
  for (uint32_t i = 0; inputs && i < num_inputs; ++i) free(inputs[i]);
  for (uint32_t i = 0; outputs && i < num_outputs; ++i) free(outputs[i]);
  free(inputs);
  free(outputs);
  if (context) tilewright_context_destroy(module, context);
  tilewright_close(module);
  return status;
}
