/* driver_shim.cpp - stands in for libcuda.so.1 in tests of the host code, where there is no GPU.
 *
 * It is no mock of results: kernels really run, by tw_emulate.h, from a shared object that
 * TW_SHIM_KERNELS names. Memory of the device is memory of the process that only the copies of the
 * driver may reach in a real one; captured launches run when their graph is launched. TW_SHIM_ARCH
 * is the compute capability, for instance 90; the calls are counted for the test.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

typedef std::function<void()> work;
struct function { std::string name; void *code; int arguments; int shared_limit; };
struct stream { std::vector<work> *capturing; };

static std::map<uint64_t, size_t> blocks; /* address -> bytes */
static std::map<std::string, int> counts;
static void *kernels;
static int shared_default = 49152;

API tw_shim_count(const char *what) { return counts[what]; }
API tw_shim_live_blocks(void) { return (int)blocks.size(); }

static bool is_device(uint64_t address, size_t bytes) {
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return false;
  --after;
  return address + bytes <= after->first + after->second;
}
static int do_or_record(stream *on, work what) {
  if (on && on->capturing) on->capturing->push_back(what);
  else what();
  return 0;
}

API cuInit(unsigned) { return getenv("TW_SHIM_BROKEN") ? 999 : 0; }
API cuGetErrorName(int, const char **text) { *text = "CUDA_ERROR_SHIM"; return 0; }
API cuGetErrorString(int, const char **text) { *text = "refused by the shim"; return 0; }
API cuDeviceGetCount(int *count) { *count = 1; return 0; }
API cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
API cuDeviceGetName(char *name, int size, int) { snprintf(name, size, "shim"); return 0; }
API cuDeviceGetAttribute(int *value, int attribute, int) {
  int arch = atoi(getenv("TW_SHIM_ARCH") ? getenv("TW_SHIM_ARCH") : "90");
  *value = attribute == 75 ? arch / 10 : arch % 10;
  return 0;
}
API cuDevicePrimaryCtxRetain(void **context, int) { *context = &blocks; counts["retain"]++; return 0; }
API cuDevicePrimaryCtxRelease_v2(int) { counts["release"]++; return 0; }
API cuCtxPushCurrent_v2(void *) { counts["push"]++; return 0; }
API cuCtxPopCurrent_v2(void **context) { *context = &blocks; counts["pop"]++; return 0; }
API cuModuleLoadData(void **module, const void *image) {
  /* 0xba55ed50 starts every fat binary. */
  if (*(const uint32_t *)image != 0xba55ed50u) return 200;
  const char *path = getenv("TW_SHIM_KERNELS");
  kernels = path ? dlopen(path, RTLD_NOW) : NULL;
  if (!kernels) fprintf(stderr, "shim: %s\n", dlerror());
  *module = kernels;
  return kernels ? 0 : 200;
}
API cuModuleUnload(void *) { counts["unload"]++; return 0; }
API cuModuleGetFunction(void **found, void *, const char *name) {
  function *made = new function{name, dlsym(kernels, name), 0, shared_default};
  int *arguments = (int *)dlsym(kernels, (std::string(name) + "_arguments").c_str());
  if (!made->code || !arguments) return 500;
  made->arguments = *arguments;
  *found = made;
  return 0;
}
API cuFuncSetAttribute(void *handle, int attribute, int value) {
  if (attribute == 8) ((function *)handle)->shared_limit = value;
  return 0;
}
API cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
  void *block = aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset(block, 0xff, bytes);
  *pointer = (uint64_t)(uintptr_t)block;
  blocks[*pointer] = bytes;
  return 0;
}
API cuMemFree_v2(uint64_t pointer) {
  if (!blocks.erase(pointer)) return 1;
  free((void *)(uintptr_t)pointer);
  return 0;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, stream *on) {
  if (!is_device(to, bytes) || is_device((uint64_t)(uintptr_t)from, 1)) return 1;
  counts["to_device"]++;
  return do_or_record(on, [=] { memcpy((void *)(uintptr_t)to, from, bytes); });
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, stream *on) {
  if (!is_device(from, bytes) || is_device((uint64_t)(uintptr_t)to, 1)) return 1;
  counts["to_host"]++;
  return do_or_record(on, [=] { memcpy(to, (void *)(uintptr_t)from, bytes); });
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, stream *on) {
  if (!is_device(from, bytes) || !is_device(to, bytes)) return 1;
  counts["on_device"]++;
  return do_or_record(on, [=] { memmove((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes); });
}
API cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
  if (!is_device(pointer, 1)) return 1;
  *(int *)value = attribute == 2 ? 2 : 0;
  return 0;
}
API cuStreamCreate(stream **made, unsigned) { *made = new stream{NULL}; counts["streams"]++; return 0; }
API cuStreamDestroy_v2(stream *old) { delete old; return 0; }
API cuStreamSynchronize(stream *) { counts["synchronize"]++; return 0; }
API cuStreamWaitEvent(stream *, int *, unsigned) { counts["waits"]++; return 0; }
API cuStreamBeginCapture_v2(stream *on, int) {
  on->capturing = new std::vector<work>;
  counts["captures"]++;
  return 0;
}
API cuStreamEndCapture(stream *on, std::vector<work> **graph) {
  *graph = on->capturing;
  on->capturing = NULL;
  return 0;
}
API cuGraphInstantiateWithFlags(std::vector<work> **ready, std::vector<work> *graph,
                                unsigned long long) {
  *ready = new std::vector<work>(*graph);
  return 0;
}
API cuGraphLaunch(std::vector<work> *ready, stream *) {
  counts["graph_launches"]++;
  for (work &item : *ready) item();
  return 0;
}
API cuGraphExecDestroy(std::vector<work> *ready) { delete ready; return 0; }
API cuGraphDestroy(std::vector<work> *graph) { delete graph; return 0; }
API cuEventCreate(int **event, unsigned) { *event = new int; counts["events"]++; return 0; }
API cuEventRecord(int *event, stream *) { *event = counts["launches"]; return 0; }
/* A launch takes one millisecond here. */
API cuEventElapsedTime(float *milliseconds, int *start, int *end) {
  *milliseconds = (float)(*end - *start);
  return 0;
}
API cuEventDestroy_v2(int *event) { delete event; counts["events"]--; return 0; }
API cuLaunchKernel(function *code, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, stream *on, void **parameters, void **) {
  if (getenv("TW_SHIM_LAUNCH_ERROR")) return atoi(getenv("TW_SHIM_LAUNCH_ERROR"));
  if (by != 1 || bz != 1 || bx > 1024 || (int)shared > code->shared_limit) return 1;
  std::vector<void *> arguments;
  for (int i = 0; i < code->arguments; ++i) {
    uint64_t pointer = *(uint64_t *)parameters[i];
    if (!is_device(pointer, 1)) return 700; /* an illegal address */
    arguments.push_back((void *)(uintptr_t)pointer);
  }
  typedef void (*emulate)(void *, int, int, int, int, int, void **, int);
  emulate run = (emulate)dlsym(kernels, "tw_emulate");
  return do_or_record(on, [=]() mutable {
    counts["launches"]++;
    run(code->code, (int)gx, (int)gy, (int)gz, (int)bx, (int)shared, arguments.data(),
        (int)arguments.size());
  });
}
