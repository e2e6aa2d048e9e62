/* tw_cpu.c - which of the CPU features that a module needs are missing here.
 *
 * The names are LLVM's. This file is compiled for the baseline CPU, like all of the runtime.
 */
#include <stdio.h>

#include "tw_runtime.h"

#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(__arm__)
#error "tilewright's runtime knows the CPU features of x86-64, aarch64 and armv7 only"
#endif

int tw_cpu_missing(const char *const *required, char *missing, size_t size) {
  size_t used = 0;
  int count = 0;
  missing[0] = '\0';
  for (; *required; ++required) {
    if (tw_cpu_has(*required)) continue;
    int written = snprintf(missing + used, size - used, "%s%s", count ? " " : "", *required);
    if (written > 0 && (size_t)written < size - used) used += (size_t)written;
    count += 1;
  }
  return count;
}
