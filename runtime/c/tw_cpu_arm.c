/* tw_cpu_arm.c - the features of an ARM processor, as the kernel states them (getauxval).
 *
 * Reading the processor's own registers traps in user mode on 32-bit systems, and would miss what
 * the kernel has disabled. The bit numbers are Linux's ABI; older headers lack some of the names.
 */
#if defined(__aarch64__) || defined(__arm__)

#include <string.h>
#include <sys/auxv.h>

#include "tw_runtime.h"

#ifndef AT_HWCAP2
#define AT_HWCAP2 26
#endif

typedef struct feature {
  const char *name;
  unsigned long word; /* AT_HWCAP or AT_HWCAP2 */
  uint8_t bit, second_bit; /* both must be set */
} feature;

static const feature FEATURES[] = {
#if defined(__aarch64__)
    {"fp-armv8", AT_HWCAP, 0, 0},
    {"neon", AT_HWCAP, 1, 1},
    {"crc", AT_HWCAP, 7, 7},
    {"lse", AT_HWCAP, 8, 8},
    {"fullfp16", AT_HWCAP, 9, 10}, /* scalar and vector */
    {"rdm", AT_HWCAP, 12, 12},
    {"jsconv", AT_HWCAP, 13, 13},
    {"complxnum", AT_HWCAP, 14, 14},
    {"rcpc", AT_HWCAP, 15, 15},
    {"dotprod", AT_HWCAP, 20, 20},
    {"sve", AT_HWCAP, 22, 22},
    {"fp16fml", AT_HWCAP, 23, 23},
    {"flagm", AT_HWCAP, 27, 27},
    {"sve2", AT_HWCAP2, 1, 1},
    {"i8mm", AT_HWCAP2, 13, 13},
    {"bf16", AT_HWCAP2, 14, 14},
#else
    {"neon", AT_HWCAP, 12, 12},
    {"vfp3", AT_HWCAP, 13, 13},
    {"vfp4", AT_HWCAP, 16, 16},
    {"hwdiv-arm", AT_HWCAP, 17, 17},
    {"hwdiv", AT_HWCAP, 18, 18},
    {"d32", AT_HWCAP, 19, 19},
#endif
};

int tw_cpu_has(const char *name) {
  for (size_t i = 0; i < sizeof FEATURES / sizeof FEATURES[0]; ++i) {
    if (strcmp(FEATURES[i].name, name) != 0) continue;
    unsigned long bits = getauxval(FEATURES[i].word);
    return bits >> FEATURES[i].bit & bits >> FEATURES[i].second_bit & 1ul;
  }
  return 0; /* not known here: better refuse than crash */
}

#else
typedef int tw_not_arm;
#endif
