/* tw_module.c - the interface of a module: open, describe, contexts, run, close.
 *
 * Nothing runs when the file is loaded: no constructors. open() checks the CPU first, before any
 * kernel can be reached.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tw_runtime.h"

#define CHECKED_PAYLOAD_BYTES ((uint64_t)64 << 20) /* larger weights are checked when asked */

typedef struct tw_model {
  const tw_program *program;
  char *description;
  char *weights;
  uint64_t weights_bytes;
  void *device; /* NULL where the program runs on this processor */
  atomic_int contexts;
} tw_model;

struct tilewright_context {
  tw_model *model;
  void *device_context; /* NULL as the model's device */
  tw_pool *pool;
  char *arena;
  size_t arena_bytes;
  const void **inputs;  /* [num_inputs] aligned pointers of this run */
  void **outputs;       /* [num_outputs] */
  void **input_copies;  /* [num_inputs] made when an input first comes unaligned */
  void **output_copies; /* [num_outputs] */
  atomic_flag busy;
};

static const char *get_error(void) { return tw_this_thread()->error; }

int tw_fail(const char *format, ...) {
  va_list arguments;
  tw_thread_state *self = tw_this_thread();
  va_start(arguments, format);
  vsnprintf(self->error, sizeof self->error, format, arguments);
  va_end(arguments);
  return -1;
}

/* TVM's code reports a failed check here: text in pieces. */
__attribute__((visibility("hidden"))) void TVMFFIErrorSetRaisedFromCStrParts(const char *kind,
                                                                             const char **parts,
                                                                             int32_t count) {
  tw_thread_state *self = tw_this_thread();
  size_t size = sizeof self->error;
  size_t used = (size_t)snprintf(self->error, size, "%s: ", kind);
  for (int32_t i = 0; i < count && used < size; ++i)
    used += (size_t)snprintf(self->error + used, size - used, "%s", parts[i]);
}

/* ---- open and close ---- */

static int read_at(int fd, void *to, uint64_t bytes, uint64_t offset) {
  char *next = to;
  while (bytes > 0) {
    ssize_t got = pread(fd, next, bytes, (off_t)offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return -1;
    next += got, offset += (uint64_t)got, bytes -= (uint64_t)got;
  }
  return 0;
}

static int read_trailer(int fd, const tw_program *program, tilewright_trailer *trailer) {
  struct stat status;
  if (fstat(fd, &status) != 0 || status.st_size < (off_t)sizeof *trailer ||
      read_at(fd, trailer, sizeof *trailer, (uint64_t)status.st_size - sizeof *trailer) != 0 ||
      memcmp(trailer->magic, TILEWRIGHT_MAGIC, sizeof trailer->magic) != 0 ||
      trailer->trailer_crc32 !=
          tilewright_crc32(0, trailer, offsetof(tilewright_trailer, trailer_crc32)) ||
      trailer->file_bytes != (uint64_t)status.st_size)
    return tw_fail("damaged: the trailer of the module is missing or wrong");
  if (trailer->format_version != TILEWRIGHT_FORMAT_VERSION ||
      trailer->code_id != program->code_id || trailer->payload_bytes != program->payload_bytes)
    return tw_fail("the file was replaced while its code was loaded; load it again");
  return 0;
}

static int load_description(tw_model *model, int fd, const tilewright_trailer *trailer) {
  model->description = malloc(trailer->description_bytes + 1);
  if (!model->description) return tw_fail("out of memory");
  if (read_at(fd, model->description, trailer->description_bytes, trailer->description_offset) ||
      tilewright_crc32(0, model->description, trailer->description_bytes) !=
          trailer->description_crc32)
    return tw_fail("damaged: the checksum of the description is wrong");
  model->description[trailer->description_bytes] = '\0';
  return 0;
}

static int load_weights(tw_model *model, int fd, const tilewright_trailer *trailer,
                        uint32_t flags) {
  if (trailer->payload_bytes == 0) return 0;
  void *weights = mmap(NULL, trailer->payload_bytes, PROT_READ, MAP_PRIVATE, fd,
                       (off_t)trailer->payload_offset);
  if (weights == MAP_FAILED)
    return tw_fail("cannot map %llu bytes of weights: %s",
                   (unsigned long long)trailer->payload_bytes, strerror(errno));
  model->weights = weights;
  model->weights_bytes = trailer->payload_bytes;
  int wanted = (flags & TILEWRIGHT_VERIFY_WEIGHTS) ||
               (trailer->payload_bytes < CHECKED_PAYLOAD_BYTES &&
                !(flags & TILEWRIGHT_SKIP_WEIGHTS_CHECK));
  if (wanted &&
      tilewright_crc32(0, weights, trailer->payload_bytes) != trailer->payload_crc32)
    return tw_fail("damaged: the checksum of the weights is wrong");
  return 0;
}

static int open_device(tw_model *model) {
  const tw_device *device = model->program->device;
  if (!device) return 0;
  model->device = device->open(model->program, model->weights);
  return model->device ? 0 : -1;
}

static void free_model(tw_model *model) {
  if (model->device) model->program->device->close(model->device);
  if (model->weights) munmap(model->weights, model->weights_bytes);
  free(model->description);
  free(model);
}

static void *open_model(const char *path, uint32_t flags) {
  const tw_program *program = &tw_main_program;
  char missing[512];
  tilewright_trailer trailer;
  if (tw_thread_state_init() != 0) {
    tw_fail("too many modules are loaded: the process has no pthread key left");
    return NULL;
  }
  if (tw_cpu_missing(program->cpu_features, missing, sizeof missing)) {
    tw_fail("this CPU lacks what the module was compiled for: %s; compile it for a target that "
            "this CPU has",
            missing);
    return NULL;
  }
  if (tw_threads_init() != 0) return NULL;
  tw_model *model = calloc(1, sizeof *model);
  if (!model) {
    tw_fail("out of memory");
    return NULL;
  }
  model->program = program;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  int failed = fd < 0 ? tw_fail("cannot open the file: %s", strerror(errno)) : 0;
  failed = failed || read_trailer(fd, program, &trailer) ||
           load_description(model, fd, &trailer) || load_weights(model, fd, &trailer, flags) ||
           open_device(model);
  if (fd >= 0) close(fd);
  if (!failed) return model;
  free_model(model);
  return NULL;
}

static int close_model(void *handle) {
  tw_model *model = handle;
  int contexts = atomic_load(&model->contexts);
  if (contexts)
    return tw_fail("cannot close the module: %d of its contexts still exist", contexts);
  free_model(model);
  return 0;
}

/* ---- describe ---- */

static const char *describe(void *model) { return ((tw_model *)model)->description; }

static uint32_t num_inputs(void *model) { return ((tw_model *)model)->program->num_inputs; }

static uint32_t num_outputs(void *model) { return ((tw_model *)model)->program->num_outputs; }

static uint32_t num_calls(void *model) { return ((tw_model *)model)->program->num_calls; }

static const tilewright_tensor *get_input(void *model, uint32_t index) {
  const tw_program *program = ((tw_model *)model)->program;
  return index < program->num_inputs ? &program->inputs[index] : NULL;
}

static const tilewright_tensor *get_output(void *model, uint32_t index) {
  const tw_program *program = ((tw_model *)model)->program;
  return index < program->num_outputs ? &program->outputs[index] : NULL;
}

/* ---- contexts ---- */

static void free_copies(void **copies, uint32_t count) {
  for (uint32_t i = 0; copies && i < count; ++i) free(copies[i]);
  free(copies);
}

static void free_context(tilewright_context *context) {
  const tw_program *program = context->model->program;
  if (context->pool) tw_pool_destroy(context->pool);
  if (context->device_context) program->device->context_destroy(context->device_context);
  tw_unmap(context->arena, context->arena_bytes);
  free_copies(context->input_copies, program->num_inputs);
  free_copies(context->output_copies, program->num_outputs);
  free(context->inputs);
  free(context->outputs);
  free(context);
}

static tilewright_context *context_create(void *handle, int threads) {
  tw_model *model = handle;
  const tw_program *program = model->program;
  tilewright_context *context = calloc(1, sizeof *context);
  if (!context) {
    tw_fail("out of memory");
    return NULL;
  }
  context->model = model;
  context->arena_bytes = program->arena_bytes;
  /* One more than needed: calloc(0) may give NULL. */
  context->inputs = calloc((size_t)program->num_inputs + 1, sizeof *context->inputs);
  context->outputs = calloc((size_t)program->num_outputs + 1, sizeof *context->outputs);
  context->input_copies = calloc((size_t)program->num_inputs + 1, sizeof(void *));
  context->output_copies = calloc((size_t)program->num_outputs + 1, sizeof(void *));
  if (program->arena_bytes) context->arena = tw_map(program->arena_bytes);
  atomic_flag_clear(&context->busy);
  if (!context->inputs || !context->outputs || !context->input_copies ||
      !context->output_copies || (program->arena_bytes && !context->arena)) {
    tw_fail("out of memory: a context needs %llu bytes", (unsigned long long)program->arena_bytes);
  } else if (!program->device) {
    context->pool = tw_pool_create(threads > 0 ? threads : tw_usable_processors());
  } else if ((context->device_context = program->device->context_create(model->device))) {
    context->pool = tw_pool_create(1);
  }
  if (context->pool) {
    atomic_fetch_add(&model->contexts, 1);
    return context;
  }
  free_context(context);
  return NULL;
}

static int context_destroy(tilewright_context *context) {
  if (atomic_flag_test_and_set(&context->busy))
    return tw_fail("cannot destroy a context while it runs");
  atomic_fetch_sub(&context->model->contexts, 1);
  free_context(context);
  return 0;
}

static int context_threads(tilewright_context *context) { return tw_pool_threads(context->pool); }

/* ---- run ---- */

static int is_aligned(const void *pointer) { return (uintptr_t)pointer % TW_CALLER_ALIGNMENT == 0; }

/* The buffer that stands in for an unaligned one; made once, kept for later runs. */
static void *copy_for(void **copies, uint32_t index, uint64_t bytes) {
  if (!copies[index]) copies[index] = aligned_alloc(TW_ALIGNMENT, (bytes / 64 + 2) * 64);
  if (!copies[index]) tw_fail("out of memory");
  return copies[index];
}

static int bind_buffers(tilewright_context *context, const void *const *inputs,
                        void *const *outputs) {
  const tw_program *program = context->model->program;
  for (uint32_t i = 0; i < program->num_inputs; ++i) {
    const tilewright_tensor *spec = &program->inputs[i];
    if (!inputs[i] && spec->size_bytes) return tw_fail("input '%s' is NULL", spec->name);
    context->inputs[i] = inputs[i];
    if (is_aligned(inputs[i])) continue;
    void *copy = copy_for(context->input_copies, i, spec->size_bytes);
    if (!copy) return -1;
    memcpy(copy, inputs[i], spec->size_bytes);
    context->inputs[i] = copy;
  }
  for (uint32_t i = 0; i < program->num_outputs; ++i) {
    const tilewright_tensor *spec = &program->outputs[i];
    if (!outputs[i] && spec->size_bytes) return tw_fail("output '%s' is NULL", spec->name);
    context->outputs[i] = outputs[i];
    if (is_aligned(outputs[i])) continue;
    context->outputs[i] = copy_for(context->output_copies, i, spec->size_bytes);
    if (!context->outputs[i]) return -1;
  }
  return 0;
}

static int run_program(tilewright_context *context, double *seconds) {
  const tw_model *model = context->model;
  tw_frame frame = {.arena = context->arena,
                    .weights = model->weights,
                    .inputs = (void *const *)context->inputs,
                    .outputs = context->outputs,
                    .seconds = seconds};
  if (tw_pool_enter(context->pool) != 0) return -1;
  char *error = tw_this_thread()->error;
  error[0] = '\0';
  int failed = model->program->run(&frame);
  tw_pool_leave(failed);
  if (!failed) return 0;
  char reason[sizeof tw_this_thread()->error];
  snprintf(reason, sizeof reason, "%s", error[0] ? error : "unknown reason");
  return tw_fail("operator '%s' failed: %s", model->program->call_labels[failed - 1], reason);
}

static int run_timed(tilewright_context *context, const void *const *inputs,
                     void *const *outputs, double *seconds) {
  const tw_program *program = context->model->program;
  if (atomic_flag_test_and_set(&context->busy))
    return tw_fail("the context is in use by another thread; each thread needs its own");
  if (program->device) {
    int status = program->device->run(context->device_context, inputs, outputs, seconds);
    atomic_flag_clear(&context->busy);
    return status ? -1 : 0;
  }
  int failed = bind_buffers(context, inputs, outputs) || run_program(context, seconds);
  for (uint32_t i = 0; !failed && i < program->num_outputs; ++i)
    if (context->outputs[i] != outputs[i])
      memcpy(outputs[i], context->outputs[i], program->outputs[i].size_bytes);
  atomic_flag_clear(&context->busy);
  return failed ? -1 : 0;
}

static int run(tilewright_context *context, const void *const *inputs, void *const *outputs) {
  return run_timed(context, inputs, outputs, NULL);
}

__attribute__((visibility("default"))) const tilewright_api tilewright_api_table
    __asm__(TILEWRIGHT_API_SYMBOL) = {
        .abi_version = TILEWRIGHT_ABI_VERSION,
        .size_bytes = sizeof(tilewright_api),
        .error = get_error,
        .open = open_model,
        .close = close_model,
        .describe = describe,
        .num_inputs = num_inputs,
        .num_outputs = num_outputs,
        .input = get_input,
        .output = get_output,
        .context_create = context_create,
        .context_destroy = context_destroy,
        .context_threads = context_threads,
        .run = run,
        .num_calls = num_calls,
        .run_timed = run_timed,
};
