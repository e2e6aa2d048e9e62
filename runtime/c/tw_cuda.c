/* tw_cuda.c - runs a program of kernel launches: one stream, one arena, one graph for a context.
 *
 * The weights are uploaded when the module is opened, into the device's primary context, which
 * other libraries of the process share. Inputs and outputs may be on the host or on the device. A
 * run with the same buffers on the device as the one before is recorded as a graph, and started as
 * one from then on; host buffers go through staging buffers, which stay the same.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tw_cuda.h"

#define DEVICE_VARIABLE "TILEWRIGHT_CUDA_DEVICE"
#define COPY_ALIGNMENT 16u /* bytes; kernels read that many at once */
#define FREE_SHARED_BYTES 49152u /* what a block may have without asking */

typedef struct tw_gpu {
  const tw_program *program;
  const tw_cuda_program *cuda;
  const tw_driver *driver;
  pid_t owner; /* contexts of the driver do not survive fork */
  int ordinal;
  CUdevice device;
  CUcontext context;
  CUmodule module;
  CUdeviceptr weights;
  CUfunction *functions; /* of each launch */
} tw_gpu;

typedef struct tw_gpu_context {
  tw_gpu *gpu;
  CUstream stream;
  CUevent ready; /* of the caller's tensors on the device */
  CUdeviceptr arena;
  CUdeviceptr *staging;  /* [inputs + outputs] made when first needed */
  CUdeviceptr *bound;    /* [inputs + outputs] of this run */
  CUdeviceptr *previous; /* of the last run */
  CUgraphExec graph;     /* recorded on `previous`; NULL if there is none */
  int has_run;
} tw_gpu_context;

static uint32_t num_buffers(const tw_gpu *gpu) {
  return gpu->program->num_inputs + gpu->program->num_outputs;
}

static const tilewright_tensor *buffer_spec(const tw_gpu *gpu, uint32_t index) {
  uint32_t inputs = gpu->program->num_inputs;
  return index < inputs ? &gpu->program->inputs[index] : &gpu->program->outputs[index - inputs];
}

/* Allocate; 0 bytes give one block all the same. */
static int allocate(const tw_driver *driver, CUdeviceptr *pointer, uint64_t bytes,
                    const char *what) {
  return tw_cuda_check(driver->alloc(pointer, bytes ? bytes : 1), what);
}

/* ---- open and close ---- */

static int choose_device(tw_gpu *gpu) {
  const tw_driver *driver = gpu->driver;
  const char *text = getenv(DEVICE_VARIABLE);
  int count = 0;
  if (tw_cuda_check(driver->device_count(&count), "cannot count the GPUs")) return -1;
  if (count == 0) return tw_fail("no CUDA GPU: the driver is there, but finds no device");
  if (text && *text) {
    char *end = NULL;
    long ordinal = strtol(text, &end, 10);
    if (*end || ordinal < 0 || ordinal >= count)
      return tw_fail(DEVICE_VARIABLE " is '%s', but the devices are 0 to %d", text, count - 1);
    gpu->ordinal = (int)ordinal;
  }
  return tw_cuda_check(driver->device_get(&gpu->device, gpu->ordinal), "cannot open the GPU");
}

static int check_capability(const tw_gpu *gpu) {
  const tw_driver *driver = gpu->driver;
  char name[128] = "unknown";
  int major = 0, minor = 0;
  const int *needed = gpu->cuda->capability;
  driver->device_name(name, sizeof name, gpu->device);
  if (tw_cuda_check(driver->device_attribute(
                        &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, gpu->device),
                    "cannot ask for the compute capability") ||
      tw_cuda_check(driver->device_attribute(
                        &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, gpu->device),
                    "cannot ask for the compute capability"))
    return -1;
  if (major > needed[0] || (major == needed[0] && minor >= needed[1])) return 0;
  return tw_fail("the module was compiled for cuda:%s, but device %d (%s) is sm_%d%d; compile it "
                 "for cuda:sm_%d%d",
                 gpu->cuda->arch, gpu->ordinal, name, major, minor, major, minor);
}

static int load_functions(tw_gpu *gpu) {
  const tw_cuda_program *cuda = gpu->cuda;
  gpu->functions = calloc((size_t)cuda->num_launches + 1, sizeof *gpu->functions);
  if (!gpu->functions) return tw_fail("out of memory");
  for (uint32_t i = 0; i < cuda->num_launches; ++i) {
    const tw_cuda_launch *launch = &cuda->launches[i];
    if (tw_cuda_check(
            gpu->driver->module_function(&gpu->functions[i], gpu->module, launch->kernel),
            launch->kernel))
      return -1;
    if (launch->shared_bytes > FREE_SHARED_BYTES &&
        tw_cuda_check(gpu->driver->function_set(gpu->functions[i],
                                                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                (int)launch->shared_bytes),
                      "cannot have the shared memory that a kernel needs"))
      return -1;
  }
  return 0;
}

static int load_image(tw_gpu *gpu) {
  CUresult result = gpu->driver->module_load(&gpu->module, gpu->cuda->image);
  if (result == CUDA_ERROR_UNSUPPORTED_PTX_VERSION || result == CUDA_ERROR_NO_BINARY_FOR_GPU)
    return tw_fail("the module was compiled for cuda:%s, and the driver cannot translate its PTX "
                   "for this GPU; compile it for this GPU, or install a newer driver",
                   gpu->cuda->arch);
  return tw_cuda_check(result, "cannot load the kernels");
}

static int upload(tw_gpu *gpu, const char *weights) {
  uint64_t bytes = gpu->program->payload_bytes;
  if (allocate(gpu->driver, &gpu->weights, bytes, "no memory on the GPU for the weights")) return -1;
  if (bytes == 0) return 0;
  if (tw_cuda_check(gpu->driver->to_device(gpu->weights, weights, bytes, NULL),
                    "cannot upload the weights"))
    return -1;
  return tw_cuda_check(gpu->driver->synchronize(NULL), "cannot upload the weights");
}

static void close_gpu(void *handle) {
  tw_gpu *gpu = handle;
  if (gpu->context && gpu->owner == getpid() &&
      gpu->driver->push(gpu->context) == CUDA_SUCCESS) {
    CUcontext popped;
    if (gpu->weights) gpu->driver->free(gpu->weights);
    if (gpu->module) gpu->driver->module_unload(gpu->module);
    gpu->driver->pop(&popped);
    gpu->driver->primary_release(gpu->device);
  }
  free(gpu->functions);
  free(gpu);
}

static void *open_gpu(const tw_program *program, const char *weights) {
  const tw_driver *driver = tw_cuda_driver();
  if (!driver) return NULL;
  tw_gpu *gpu = calloc(1, sizeof *gpu);
  if (!gpu) {
    tw_fail("out of memory");
    return NULL;
  }
  gpu->program = program;
  gpu->cuda = program->device_program;
  gpu->driver = driver;
  gpu->owner = getpid();
  int failed = choose_device(gpu) || check_capability(gpu) ||
               tw_cuda_check(driver->primary_retain(&gpu->context, gpu->device),
                             "cannot use the GPU");
  if (!failed && !(failed = tw_cuda_check(driver->push(gpu->context), "cannot use the GPU"))) {
    CUcontext popped;
    failed = load_image(gpu) || load_functions(gpu) || upload(gpu, weights);
    driver->pop(&popped);
  }
  if (!failed) return gpu;
  close_gpu(gpu);
  return NULL;
}

/* ---- contexts ---- */

static void release(tw_gpu_context *self) {
  const tw_driver *driver = self->gpu->driver;
  if (self->graph) driver->ready_destroy(self->graph);
  if (self->arena) driver->free(self->arena);
  for (uint32_t i = 0; self->staging && i < num_buffers(self->gpu); ++i)
    if (self->staging[i]) driver->free(self->staging[i]);
  if (self->ready) driver->event_destroy(self->ready);
  if (self->stream) driver->stream_destroy(self->stream);
}

static void destroy_context(void *handle) {
  tw_gpu_context *self = handle;
  CUcontext popped;
  if (self->gpu->owner == getpid() && self->gpu->driver->push(self->gpu->context) == CUDA_SUCCESS) {
    release(self);
    self->gpu->driver->pop(&popped);
  }
  free(self->staging);
  free(self->bound);
  free(self->previous);
  free(self);
}

static void *create_context(void *device) {
  tw_gpu *gpu = device;
  const tw_driver *driver = gpu->driver;
  CUcontext popped;
  if (gpu->owner != getpid()) {
    tw_fail("a CUDA module does not work in a child made by fork; open it there");
    return NULL;
  }
  tw_gpu_context *self = calloc(1, sizeof *self);
  size_t count = (size_t)num_buffers(gpu) + 1;
  if (self) {
    self->gpu = gpu;
    self->staging = calloc(count, sizeof *self->staging);
    self->bound = calloc(count, sizeof *self->bound);
    self->previous = calloc(count, sizeof *self->previous);
  }
  int failed = !self || !self->staging || !self->bound || !self->previous;
  if (failed) tw_fail("out of memory");
  if (!failed && !(failed = tw_cuda_check(driver->push(gpu->context), "cannot use the GPU"))) {
    failed = tw_cuda_check(driver->stream_create(&self->stream, CU_STREAM_NON_BLOCKING),
                           "cannot make a stream") ||
             tw_cuda_check(driver->event_create(&self->ready, CU_EVENT_DISABLE_TIMING),
                           "cannot make an event") ||
             allocate(driver, &self->arena, gpu->cuda->arena_bytes,
                      "no memory on the GPU for what is between the operators");
    driver->pop(&popped);
  }
  if (!failed) return self;
  if (self) destroy_context(self);
  return NULL;
}

/* ---- run ---- */

/* Whether the GPU can use a pointer of the caller: 1, 0 for host memory, or -1 for another GPU's. */
static int is_on_device(const tw_gpu *gpu, const void *pointer, const char *name) {
  unsigned kind = 0;
  int ordinal = gpu->ordinal;
  CUdeviceptr address = (CUdeviceptr)(uintptr_t)pointer;
  if (gpu->driver->pointer_attribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address) !=
          CUDA_SUCCESS ||
      kind != CU_MEMORYTYPE_DEVICE)
    return 0;
  gpu->driver->pointer_attribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address);
  if (ordinal == gpu->ordinal) return 1;
  return tw_fail("'%s' is on device %d, but the module was opened on device %d", name, ordinal,
                 gpu->ordinal);
}

/* Wait for the legacy stream, for which DLPack's producers make their tensors ready. */
static int wait_for_caller(tw_gpu_context *self) {
  const tw_driver *driver = self->gpu->driver;
  return tw_cuda_check(driver->event_record(self->ready, NULL), "cannot wait for the caller") ||
         tw_cuda_check(driver->stream_wait(self->stream, self->ready, 0),
                       "cannot wait for the caller");
}

/* Find the address that kernels use for each buffer; inputs that need it are copied there. */
static int bind(tw_gpu_context *self, const void *const *inputs, void *const *outputs) {
  const tw_gpu *gpu = self->gpu;
  const tw_driver *driver = gpu->driver;
  uint32_t num_inputs = gpu->program->num_inputs;
  int has_waited = 0;
  for (uint32_t i = 0; i < num_buffers(gpu); ++i) {
    const tilewright_tensor *spec = buffer_spec(gpu, i);
    const void *pointer = i < num_inputs ? inputs[i] : outputs[i - num_inputs];
    if (!pointer && spec->size_bytes)
      return tw_fail("%s '%s' is NULL", i < num_inputs ? "input" : "output", spec->name);
    int on_device = is_on_device(gpu, pointer, spec->name);
    if (on_device < 0 || (on_device && !has_waited && wait_for_caller(self))) return -1;
    has_waited |= on_device;
    if (on_device && (uintptr_t)pointer % COPY_ALIGNMENT == 0) {
      self->bound[i] = (CUdeviceptr)(uintptr_t)pointer;
      continue;
    }
    if (!self->staging[i] &&
        allocate(driver, &self->staging[i], spec->size_bytes, "no memory on the GPU for a buffer"))
      return -1;
    self->bound[i] = self->staging[i];
    if (i >= num_inputs || !spec->size_bytes) continue;
    CUresult copied =
        on_device ? driver->on_device(self->bound[i], (CUdeviceptr)(uintptr_t)pointer,
                                      spec->size_bytes, self->stream)
                  : driver->to_device(self->bound[i], pointer, spec->size_bytes, self->stream);
    if (tw_cuda_check(copied, "cannot copy an input")) return -1;
  }
  return 0;
}

static CUdeviceptr address_of(const tw_gpu_context *self, const tw_place *place) {
  switch (place->space) {
    case TW_INPUT: return self->bound[place->index] + place->offset;
    case TW_OUTPUT: return self->bound[self->gpu->program->num_inputs + place->index] + place->offset;
    case TW_WEIGHTS: return self->gpu->weights + place->offset;
    default: return self->arena + place->offset;
  }
}

static int launch_one(tw_gpu_context *self, uint32_t index) {
  enum { MOST = 64 };
  const tw_gpu *gpu = self->gpu;
  const tw_cuda_launch *launch = &gpu->cuda->launches[index];
  CUdeviceptr values[MOST];
  void *parameters[MOST];
  if (launch->num_arguments > MOST)
    return tw_fail("kernel '%s' has more than %d arguments", launch->kernel, MOST);
  for (uint32_t i = 0; i < launch->num_arguments; ++i) {
    values[i] = address_of(self, &gpu->cuda->arguments[launch->first_argument + i]);
    parameters[i] = &values[i];
  }
  CUresult result = gpu->driver->launch(
      gpu->functions[index], launch->grid[0], launch->grid[1], launch->grid[2], launch->threads, 1,
      1, launch->shared_bytes, self->stream, parameters, NULL);
  return result == CUDA_SUCCESS ? 0
                                : tw_cuda_check(result, gpu->program->call_labels[index]);
}

/* Start every kernel, then the copies of results that are not written in place. */
static int launch_all(tw_gpu_context *self, CUevent *events) {
  const tw_gpu *gpu = self->gpu;
  const tw_driver *driver = gpu->driver;
  if (events && tw_cuda_check(driver->event_record(events[0], self->stream), "cannot time"))
    return -1;
  for (uint32_t i = 0; i < gpu->cuda->num_launches; ++i) {
    if (launch_one(self, i)) return -1;
    if (events && tw_cuda_check(driver->event_record(events[i + 1], self->stream), "cannot time"))
      return -1;
  }
  for (uint32_t i = 0; i < gpu->cuda->num_copies; ++i) {
    const tw_cuda_copy *copy = &gpu->cuda->copies[i];
    CUdeviceptr to = self->bound[gpu->program->num_inputs + copy->output];
    uint64_t bytes = gpu->program->outputs[copy->output].size_bytes;
    if (bytes && tw_cuda_check(driver->on_device(to, address_of(self, &copy->from), bytes,
                                                 self->stream),
                               "cannot copy a result"))
      return -1;
  }
  return 0;
}

static int record(tw_gpu_context *self) {
  const tw_driver *driver = self->gpu->driver;
  CUgraph graph = NULL;
  if (tw_cuda_check(driver->begin_capture(self->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                    "cannot record a graph"))
    return -1;
  int failed = launch_all(self, NULL);
  /* The end of a capture must be asked for even after a failure, whose text stays. */
  CUresult ended = driver->end_capture(self->stream, &graph);
  if (!failed) failed = tw_cuda_check(ended, "cannot record a graph");
  if (!failed)
    failed = tw_cuda_check(driver->instantiate(&self->graph, graph, 0), "cannot make a graph");
  if (graph) driver->graph_destroy(graph);
  if (failed) self->graph = NULL;
  return failed;
}

/* Start everything; with the buffers of the last run as a graph. */
static int start(tw_gpu_context *self) {
  const tw_driver *driver = self->gpu->driver;
  size_t bytes = num_buffers(self->gpu) * sizeof *self->bound;
  int same = self->has_run && memcmp(self->bound, self->previous, bytes) == 0;
  memcpy(self->previous, self->bound, bytes);
  self->has_run = 1;
  if (!same) {
    if (self->graph) driver->ready_destroy(self->graph);
    self->graph = NULL;
    return launch_all(self, NULL);
  }
  if (!self->graph && record(self)) return -1;
  return tw_cuda_check(driver->graph_launch(self->graph, self->stream), "cannot start the graph");
}

/* Start kernel by kernel, and read the time after each. */
static int start_timed(tw_gpu_context *self, double *seconds) {
  const tw_driver *driver = self->gpu->driver;
  uint32_t count = self->gpu->cuda->num_launches + 1;
  CUevent *events = calloc(count, sizeof *events);
  if (!events) return tw_fail("out of memory");
  int failed = 0;
  for (uint32_t i = 0; !failed && i < count; ++i)
    failed = tw_cuda_check(driver->event_create(&events[i], 0), "cannot time");
  if (!failed) failed = launch_all(self, events);
  if (!failed) failed = tw_cuda_check(driver->synchronize(self->stream), "a kernel failed");
  seconds[0] = 0;
  for (uint32_t i = 1; !failed && i < count; ++i) {
    float milliseconds = 0;
    failed = tw_cuda_check(driver->event_milliseconds(&milliseconds, events[0], events[i]),
                           "cannot time");
    seconds[i] = milliseconds / 1e3;
  }
  for (uint32_t i = 0; i < count; ++i)
    if (events[i]) driver->event_destroy(events[i]);
  free(events);
  return failed;
}

static int fetch(tw_gpu_context *self, void *const *outputs) {
  const tw_gpu *gpu = self->gpu;
  for (uint32_t i = 0; i < gpu->program->num_outputs; ++i) {
    uint32_t index = gpu->program->num_inputs + i;
    uint64_t bytes = gpu->program->outputs[i].size_bytes;
    if (self->bound[index] != self->staging[index] || !bytes) continue;
    /* An unaligned buffer on the device is staged too. */
    int on_device = is_on_device(gpu, outputs[i], gpu->program->outputs[i].name);
    CUresult copied =
        on_device > 0 ? gpu->driver->on_device((CUdeviceptr)(uintptr_t)outputs[i],
                                               self->bound[index], bytes, self->stream)
                      : gpu->driver->to_host(outputs[i], self->bound[index], bytes, self->stream);
    if (tw_cuda_check(copied, "cannot copy a result")) return -1;
  }
  return tw_cuda_check(gpu->driver->synchronize(self->stream), "a kernel failed");
}

static int run(void *handle, const void *const *inputs, void *const *outputs, double *seconds) {
  tw_gpu_context *self = handle;
  const tw_driver *driver = self->gpu->driver;
  CUcontext popped;
  if (self->gpu->owner != getpid())
    return tw_fail("a CUDA module does not work in a child made by fork; open it there");
  if (tw_cuda_check(driver->push(self->gpu->context), "cannot use the GPU")) return -1;
  int failed = bind(self, inputs, outputs) ||
               (seconds ? start_timed(self, seconds) : start(self)) || fetch(self, outputs);
  driver->pop(&popped);
  return failed ? -1 : 0;
}

const tw_device tw_cuda_device = {
    .open = open_gpu,
    .close = close_gpu,
    .context_create = create_context,
    .context_destroy = destroy_context,
    .run = run,
};
