/* tw_cuda_driver.c - finds NVIDIA's driver when a module is opened. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "tw_cuda.h"

#define LIBRARY "libcuda.so.1"

static tw_driver driver;
static char problem[512]; /* "" where the driver is there */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
  void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(problem, sizeof problem,
             "no NVIDIA driver: %s; the module needs a CUDA GPU and its driver, or compile the "
             "model for a processor",
             dlerror());
    return;
  }
#define FIND(symbol, name, parameters)                                                      \
  if (!problem[0] && !(*(void **)&driver.name = dlsym(library, #symbol)))                   \
    snprintf(problem, sizeof problem, "the NVIDIA driver is too old: " LIBRARY " has no %s; " \
             "install one for CUDA 12 or newer", #symbol);
  TW_DRIVER_FUNCTIONS(FIND)
#undef FIND
  if (problem[0]) return;
  CUresult result = driver.init(0);
  if (result == CUDA_SUCCESS) return;
  const char *text = NULL;
  driver.error_string(result, &text);
  snprintf(problem, sizeof problem, "the NVIDIA driver does not start: %s (error %d)",
           text ? text : "unknown reason", result);
}

const tw_driver *tw_cuda_driver(void) {
  pthread_once(&once, load);
  if (!problem[0]) return &driver;
  tw_fail("%s", problem);
  return NULL;
}

int tw_cuda_check(CUresult result, const char *what) {
  if (result == CUDA_SUCCESS) return 0;
  const char *name = NULL, *text = NULL;
  driver.error_name(result, &name);
  driver.error_string(result, &text);
  return tw_fail("%s: %s (%s, error %d)", what, text ? text : "unknown reason",
                 name ? name : "no name", result);
}
