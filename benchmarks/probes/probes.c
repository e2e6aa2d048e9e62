/* What the processor can do right now: multiply-add peak and read bandwidth of one thread.
 *
 * The machines that benchmarks run on are shared: the same code takes 1x to 2x as long from one
 * minute to the next. Called between the rounds of a measurement, these say what the machine gave at that time.
 */
#include <immintrin.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define VECTOR __m512
#define LANES 16
#define SET1 _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#define ADD _mm512_add_ps
#define LOAD _mm512_load_ps
#define ACCUMULATORS 24 /* latency 4 x 2 pipes = 8 would do; 24 of 32 registers */
#else
#define VECTOR __m256
#define LANES 8
#define SET1 _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#define ADD _mm256_add_ps
#define LOAD _mm256_load_ps
#define ACCUMULATORS 12 /* of 16 registers */
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static volatile float sink;

static float first(VECTOR v) {
    float lanes[LANES] __attribute__((aligned(64)));
    *(VECTOR *)lanes = v;
    return lanes[0];
}

/* float32 multiply-adds in registers, in GFLOP/s (2 operations each), over `steps` loop iterations */
double peak_gflops(long steps) {
    VECTOR a[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++) a[i] = SET1(i * 1e-9f);
    VECTOR b = SET1(1.0f), c = SET1(1e-9f);
    double start = now();
    for (long k = 0; k < steps; k++) {
#pragma GCC unroll 24
        for (int i = 0; i < ACCUMULATORS; i++) a[i] = FMA(a[i], b, c);
    }
    double seconds = now() - start;
    VECTOR sum = a[0];
    for (int i = 1; i < ACCUMULATORS; i++) sum = ADD(sum, a[i]);
    sink = first(sum);
    return steps * (double)ACCUMULATORS * LANES * 2 / seconds / 1e9;
}

static float *floats_to_read(long count) {
    static float *data;
    static long held;
    if (held != count) {
        free(data);
        data = aligned_alloc(64, count * sizeof(float));
        held = data ? count : 0;
        if (!data) return NULL;
        for (long i = 0; i < count; i++) data[i] = i;
    }
    return data;
}

/* one pass over `count` floats (a multiple of 64, well above the last cache), in GB/s; < 0: no memory */
double read_gb_s(long count) {
    float *data = floats_to_read(count);
    if (!data) return -1;
    VECTOR s[4] = {SET1(0), SET1(0), SET1(0), SET1(0)};
    double start = now();
    for (long i = 0; i < count; i += 4 * LANES)
        for (int j = 0; j < 4; j++) s[j] = ADD(s[j], LOAD(data + i + j * LANES));
    double seconds = now() - start;
    sink = first(ADD(ADD(s[0], s[1]), ADD(s[2], s[3])));
    return count * sizeof(float) / seconds / 1e9;
}

/* the same in 4 streams, which are fetched at once */
double read_streams_gb_s(long count) {
    float *data = floats_to_read(count);
    if (!data) return -1;
    long part = count / 4;
    VECTOR s[4] = {SET1(0), SET1(0), SET1(0), SET1(0)};
    double start = now();
    for (long i = 0; i < part; i += LANES)
        for (int j = 0; j < 4; j++) s[j] = ADD(s[j], LOAD(data + j * part + i));
    double seconds = now() - start;
    sink = first(ADD(ADD(s[0], s[1]), ADD(s[2], s[3])));
    return count * sizeof(float) / seconds / 1e9;
}

/* int8 multiply-adds in registers, in 10^9 operations a second (2 operations each): vpdpbusd, or
   without VNNI vpmaddwd and an add, the fastest form that is exact; < 0: neither */
double int8_gops(long steps) {
#if defined(__AVX512VNNI__)
    /* named variables: an array of integer accumulators stays on the stack, whatever is unrolled */
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define START(i) __m512i a##i = _mm512_set1_epi32(i);
#define STEP(i) a##i = _mm512_dpbusd_epi32(a##i, b, c);
#define SUM(i) a0 = _mm512_add_epi32(a0, a##i);
    EACH(START)
    __m512i b = _mm512_set1_epi8(1), c = _mm512_set1_epi8(2);
    double start = now();
    for (long k = 0; k < steps; k++) {
        EACH(STEP)
        __asm__ volatile("" : "+v"(b)); /* or the loop would be worked out by the compiler */
    }
    double seconds = now() - start;
    EACH(SUM)
    sink = _mm512_reduce_add_epi32(a0);
    return steps * 12.0 * 64 * 2 / seconds / 1e9;
#elif defined(__AVX2__)
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define START(i) __m256i a##i = _mm256_set1_epi32(i);
/* in assembly: the compiler would move the products apart and spill the sums */
#define STEP(i) \
    __asm__ volatile("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(a##i), "=&x"(t) : "x"(b), "x"(c));
#define SUM(i) a0 = _mm256_add_epi32(a0, a##i);
    EACH(START)
    __m256i b = _mm256_set1_epi16(1), c = _mm256_set1_epi16(2), t;
    double start = now();
    for (long k = 0; k < steps; k++) {
        EACH(STEP)
    }
    double seconds = now() - start;
    EACH(SUM)
    sink = _mm256_extract_epi32(a0, 0);
    return steps * 12.0 * 16 * 2 / seconds / 1e9;
#else
    (void)steps;
    return -1;
#endif
}
