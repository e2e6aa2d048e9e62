/* tw_cpu_x86.c - the features of an x86-64 processor, by cpuid.
 *
 * A vector feature counts only if the operating system also saves its registers (XCR0).
 */
#if defined(__x86_64__)

#include <string.h>

#include "tw_runtime.h"

#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };

/* Register state that the system must save, bits of XCR0. */
#define NO_STATE 0u
#define YMM 0x6u
#define ZMM 0xE6u
#define TILE 0x60000u

typedef struct feature {
  const char *name;
  uint32_t leaf, subleaf;
  uint8_t reg, bit;
  uint32_t state;
} feature;

static const feature FEATURES[] = {
    {"sse3", 1, 0, ECX, 0, NO_STATE},
    {"pclmul", 1, 0, ECX, 1, NO_STATE},
    {"ssse3", 1, 0, ECX, 9, NO_STATE},
    {"fma", 1, 0, ECX, 12, YMM},
    {"cx16", 1, 0, ECX, 13, NO_STATE},
    {"sse4.1", 1, 0, ECX, 19, NO_STATE},
    {"sse4.2", 1, 0, ECX, 20, NO_STATE},
    {"movbe", 1, 0, ECX, 22, NO_STATE},
    {"popcnt", 1, 0, ECX, 23, NO_STATE},
    {"aes", 1, 0, ECX, 25, NO_STATE},
    {"avx", 1, 0, ECX, 28, YMM},
    {"f16c", 1, 0, ECX, 29, YMM},
    {"bmi", 7, 0, EBX, 3, NO_STATE},
    {"avx2", 7, 0, EBX, 5, YMM},
    {"bmi2", 7, 0, EBX, 8, NO_STATE},
    {"avx512f", 7, 0, EBX, 16, ZMM},
    {"avx512dq", 7, 0, EBX, 17, ZMM},
    {"adx", 7, 0, EBX, 19, NO_STATE},
    {"avx512ifma", 7, 0, EBX, 21, ZMM},
    {"avx512cd", 7, 0, EBX, 28, ZMM},
    {"sha", 7, 0, EBX, 29, NO_STATE},
    {"avx512bw", 7, 0, EBX, 30, ZMM},
    {"avx512vl", 7, 0, EBX, 31, ZMM},
    {"avx512vbmi", 7, 0, ECX, 1, ZMM},
    {"avx512vbmi2", 7, 0, ECX, 6, ZMM},
    {"gfni", 7, 0, ECX, 8, NO_STATE},
    {"vaes", 7, 0, ECX, 9, YMM},
    {"vpclmulqdq", 7, 0, ECX, 10, YMM},
    {"avx512vnni", 7, 0, ECX, 11, ZMM},
    {"avx512bitalg", 7, 0, ECX, 12, ZMM},
    {"avx512vpopcntdq", 7, 0, ECX, 14, ZMM},
    {"avx512vp2intersect", 7, 0, EDX, 8, ZMM},
    {"amx-bf16", 7, 0, EDX, 22, TILE},
    {"avx512fp16", 7, 0, EDX, 23, ZMM},
    {"amx-tile", 7, 0, EDX, 24, TILE},
    {"amx-int8", 7, 0, EDX, 25, TILE},
    {"sha512", 7, 1, EAX, 0, YMM},
    {"sm3", 7, 1, EAX, 1, YMM},
    {"sm4", 7, 1, EAX, 2, YMM},
    {"avxvnni", 7, 1, EAX, 4, YMM},
    {"avx512bf16", 7, 1, EAX, 5, ZMM},
    {"amx-fp16", 7, 1, EAX, 21, TILE},
    {"avxifma", 7, 1, EAX, 23, YMM},
    {"avxvnniint8", 7, 1, EDX, 4, YMM},
    {"avxneconvert", 7, 1, EDX, 5, YMM},
    {"avxvnniint16", 7, 1, EDX, 10, YMM},
    {"lzcnt", 0x80000001u, 0, ECX, 5, NO_STATE},
    {"sse4a", 0x80000001u, 0, ECX, 6, NO_STATE},
    {"xop", 0x80000001u, 0, ECX, 11, YMM},
    {"fma4", 0x80000001u, 0, ECX, 16, YMM},
    {"tbm", 0x80000001u, 0, ECX, 21, NO_STATE},
};

static int has_bit(const feature *wanted) {
  uint32_t regs[4] = {0, 0, 0, 0};
  uint32_t last_subleaf, unused[3];
  if (wanted->subleaf > 0 &&
      (!__get_cpuid_count(wanted->leaf, 0, &last_subleaf, &unused[0], &unused[1], &unused[2]) ||
       last_subleaf < wanted->subleaf))
    return 0;
  return __get_cpuid_count(wanted->leaf, wanted->subleaf, &regs[EAX], &regs[EBX], &regs[ECX],
                           &regs[EDX]) &&
         (regs[wanted->reg] >> wanted->bit & 1u);
}

/* XCR0: the register state that the operating system saves; 0 if it has not enabled XSAVE. */
static uint64_t saved_state(void) {
  static const feature OSXSAVE = {"osxsave", 1, 0, ECX, 27, NO_STATE};
  uint32_t low, high;
  if (!has_bit(&OSXSAVE)) return 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

int tw_cpu_has(const char *name) {
  uint64_t state = saved_state();
  for (size_t i = 0; i < sizeof FEATURES / sizeof FEATURES[0]; ++i)
    if (strcmp(FEATURES[i].name, name) == 0)
      return has_bit(&FEATURES[i]) && (FEATURES[i].state & ~state) == 0;
  return 0; /* not known here: better refuse than crash */
}

#else
typedef int tw_not_x86;
#endif
