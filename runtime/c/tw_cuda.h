/* tw_cuda.h - a program of kernel launches, and the driver functions that run it. Not for clients.
 *
 * The driver API is declared here, so that neither a toolkit nor a driver is needed to build: names,
 * types and numbers are those of cuda.h, which keeps them stable.
 */
#ifndef TW_CUDA_H
#define TW_CUDA_H

#include "tw_runtime.h"

/* ---- generated for each module ---- */

typedef enum tw_space { TW_INPUT, TW_OUTPUT, TW_WEIGHTS, TW_ARENA } tw_space;

typedef struct tw_place {
  uint32_t space;  /* tw_space */
  uint32_t index;  /* of an input or output */
  uint64_t offset; /* bytes */
} tw_place;

typedef struct tw_cuda_launch {
  const char *kernel;
  uint32_t grid[3];
  uint32_t threads;
  uint32_t shared_bytes;
  uint32_t first_argument; /* in the table of arguments */
  uint32_t num_arguments;
} tw_cuda_launch;

typedef struct tw_cuda_copy {
  tw_place from;
  uint32_t output;
} tw_cuda_copy;

typedef struct tw_cuda_program {
  const void *image; /* fat binary */
  const char *arch;  /* "sm_90" */
  int capability[2];
  uint64_t arena_bytes;
  uint32_t num_launches;
  uint32_t num_copies;
  const tw_cuda_launch *launches;
  const tw_place *arguments;
  const tw_cuda_copy *copies;
} tw_cuda_program;

extern const tw_device tw_cuda_device;

/* ---- tw_cuda_driver.c ---- */

typedef int CUresult;
typedef int CUdevice;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef uint64_t CUdeviceptr;

enum {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_NO_BINARY_FOR_GPU = 209,
  CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75,
  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76,
  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8,
  CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
  CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
  CU_MEMORYTYPE_DEVICE = 2,
  CU_STREAM_NON_BLOCKING = 1,
  CU_EVENT_DISABLE_TIMING = 2,
  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
};

/* name in libcuda, name here, parameters */
#define TW_DRIVER_FUNCTIONS(F)                                                                     \
  F(cuInit, init, (unsigned flags))                                                                \
  F(cuGetErrorName, error_name, (CUresult error, const char **text))                               \
  F(cuGetErrorString, error_string, (CUresult error, const char **text))                           \
  F(cuDeviceGetCount, device_count, (int *count))                                                  \
  F(cuDeviceGet, device_get, (CUdevice *device, int ordinal))                                      \
  F(cuDeviceGetName, device_name, (char *name, int size, CUdevice device))                         \
  F(cuDeviceGetAttribute, device_attribute, (int *value, int attribute, CUdevice device))          \
  F(cuDevicePrimaryCtxRetain, primary_retain, (CUcontext *context, CUdevice device))               \
  F(cuDevicePrimaryCtxRelease_v2, primary_release, (CUdevice device))                              \
  F(cuCtxPushCurrent_v2, push, (CUcontext context))                                                \
  F(cuCtxPopCurrent_v2, pop, (CUcontext *context))                                                 \
  F(cuModuleLoadData, module_load, (CUmodule *module, const void *image))                          \
  F(cuModuleUnload, module_unload, (CUmodule module))                                              \
  F(cuModuleGetFunction, module_function,                                                          \
    (CUfunction *function, CUmodule module, const char *name))                                     \
  F(cuFuncSetAttribute, function_set, (CUfunction function, int attribute, int value))             \
  F(cuMemAlloc_v2, alloc, (CUdeviceptr *pointer, size_t bytes))                                    \
  F(cuMemFree_v2, free, (CUdeviceptr pointer))                                                     \
  F(cuMemcpyHtoDAsync_v2, to_device,                                                               \
    (CUdeviceptr to, const void *from, size_t bytes, CUstream stream))                             \
  F(cuMemcpyDtoHAsync_v2, to_host, (void *to, CUdeviceptr from, size_t bytes, CUstream stream))    \
  F(cuMemcpyDtoDAsync_v2, on_device,                                                               \
    (CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream))                             \
  F(cuPointerGetAttribute, pointer_attribute, (void *value, int attribute, CUdeviceptr pointer))   \
  F(cuStreamCreate, stream_create, (CUstream *stream, unsigned flags))                             \
  F(cuStreamDestroy_v2, stream_destroy, (CUstream stream))                                         \
  F(cuStreamSynchronize, synchronize, (CUstream stream))                                           \
  F(cuStreamWaitEvent, stream_wait, (CUstream stream, CUevent event, unsigned flags))              \
  F(cuStreamBeginCapture_v2, begin_capture, (CUstream stream, int mode))                           \
  F(cuStreamEndCapture, end_capture, (CUstream stream, CUgraph *graph))                            \
  F(cuGraphInstantiateWithFlags, instantiate,                                                      \
    (CUgraphExec *ready, CUgraph graph, unsigned long long flags))                                 \
  F(cuGraphLaunch, graph_launch, (CUgraphExec ready, CUstream stream))                             \
  F(cuGraphExecDestroy, ready_destroy, (CUgraphExec ready))                                        \
  F(cuGraphDestroy, graph_destroy, (CUgraph graph))                                                \
  F(cuEventCreate, event_create, (CUevent *event, unsigned flags))                                 \
  F(cuEventRecord, event_record, (CUevent event, CUstream stream))                                 \
  F(cuEventElapsedTime, event_milliseconds, (float *milliseconds, CUevent start, CUevent end))     \
  F(cuEventDestroy_v2, event_destroy, (CUevent event))                                             \
  F(cuLaunchKernel, launch,                                                                        \
    (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,     \
     unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream,                   \
     void **parameters, void **extra))

typedef struct tw_driver {
#define TW_DRIVER_FIELD(symbol, name, parameters) CUresult(*name) parameters;
  TW_DRIVER_FUNCTIONS(TW_DRIVER_FIELD)
#undef TW_DRIVER_FIELD
} tw_driver;

/* The driver, loaded once for each process; NULL with the error text set where there is none. */
const tw_driver *tw_cuda_driver(void);

/* 0, or -1 with the error text set: what failed, and what the driver says of it. */
int tw_cuda_check(CUresult result, const char *what);

#endif /* TW_CUDA_H */
