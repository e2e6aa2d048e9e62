/* What generated kernels use. With TW_EMULATE the instructions of the GPU come from an emulation. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || (defined(TW_EMULATE) && !defined(TW_NO_WARPGROUPS))
#define TW_WARPGROUPS /* else kernels with wgmma take mma.sync: PTX for later chips */
#endif
#if defined(TW_EMULATE)
#include "tw_emulate.h"
#else
#define TW_SHARED extern __shared__ __align__(1024) unsigned char tw_shared[]
#define TW_GLOBAL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define TW_BARRIER() __syncthreads()
#define TW_SHUFFLE_XOR(value, mask) __shfl_xor_sync(0xffffffffu, value, mask)
#define TW_SHUFFLE(value, lane) __shfl_sync(0xffffffffu, value, lane)

static __device__ __forceinline__ float tw_from_half(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
static __device__ __forceinline__ unsigned short tw_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
static __device__ __forceinline__ unsigned tw_to_tf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}
/* Copy 16 bytes from device to shared memory in the background, or zeros where not `valid`. */
static __device__ __forceinline__ void tw_copy16(void *to, const void *from, bool valid) {
  unsigned address = (unsigned)__cvta_generic_to_shared(to);
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}
static __device__ __forceinline__ void tw_copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int pending>
static __device__ __forceinline__ void tw_copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
/* Four 8x8 matrices of 16-bit elements; thread t gives the address of row t % 8 of matrix t / 8.
 * Turned: what was a column of each becomes a row. */
#define TW_LOAD_MATRIX(name, form)                                                               \
  static __device__ __forceinline__ void name(unsigned (&r)[4], const void *row) {                \
    unsigned address = (unsigned)__cvta_generic_to_shared(row);                                  \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" form ".shared.b16 {%0, %1, %2, %3}, [%4];"       \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                                \
                 : "r"(address)                                                                  \
                 : "memory");                                                                    \
  }
TW_LOAD_MATRIX(tw_load_matrix4, "")
TW_LOAD_MATRIX(tw_load_turned4, ".trans")
#define TW_MMA(name, shape, type, letter)                                                        \
  static __device__ __forceinline__ void name(type (&c)[4], const unsigned (&a)[4], unsigned b0,  \
                                              unsigned b1) {                                     \
    asm volatile("mma.sync.aligned." shape                                                       \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"              \
                 : letter(c[0]), letter(c[1]), letter(c[2]), letter(c[3])                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                \
  }
TW_MMA(tw_mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32", float, "+f")
TW_MMA(tw_mma_half, "m16n8k16.row.col.f32.f16.f16.f32", float, "+f")
TW_MMA(tw_mma_bfloat, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "+f")
TW_MMA(tw_mma_s8s8, "m16n8k32.row.col.s32.s8.s8.s32", int, "+r")
TW_MMA(tw_mma_u8s8, "m16n8k32.row.col.s32.u8.s8.s32", int, "+r")
TW_MMA(tw_mma_s8u8, "m16n8k32.row.col.s32.s8.u8.s32", int, "+r")
TW_MMA(tw_mma_u8u8, "m16n8k32.row.col.s32.u8.u8.s32", int, "+r")
#if defined(TW_WARPGROUPS)
static __device__ __forceinline__ unsigned tw_shared_address(const void *place) {
  return (unsigned)__cvta_generic_to_shared(place);
}
/* What this thread wrote to shared memory, wgmma shall see after the next barrier. */
static __device__ __forceinline__ void tw_wgmma_publish() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/* The compiler must neither read sums before they are waited for, nor write them after the begin. */
static __device__ __forceinline__ void tw_pin(float &sum) { asm volatile("" : "+f"(sum)::"memory"); }
static __device__ __forceinline__ void tw_pin(int &sum) { asm volatile("" : "+r"(sum)::"memory"); }
template <typename T, int rows, int columns>
static __device__ __forceinline__ void tw_pin_all(T (&sums)[rows][columns][4]) {
#pragma unroll
  for (int i = 0; i < rows; ++i) {
#pragma unroll
    for (int j = 0; j < columns; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) tw_pin(sums[i][j][e]);
    }
  }
}
template <typename T, int rows, int columns>
static __device__ __forceinline__ void tw_wgmma_begin(T (&sums)[rows][columns][4]) {
  tw_pin_all(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
static __device__ __forceinline__ void tw_wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <typename T, int rows, int columns>
static __device__ __forceinline__ void tw_wgmma_wait(T (&sums)[rows][columns][4]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  tw_pin_all(sums);
}
#endif
#endif

/* Of a block among those of its kernel, where one launch has the blocks of several. */
struct tw_place { int x, y, z; };
#define TW_PART static __device__ __forceinline__ void

template <typename To, typename From>
static __device__ __forceinline__ To tw_bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "only the type changes");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
#if !defined(TW_EMULATE)
/* Replace what is at a place by combine(it), whatever else changes it at the same time. */
template <int bytes> struct tw_word;
template <> struct tw_word<2> { typedef unsigned short type; };
template <> struct tw_word<4> { typedef unsigned int type; };
template <> struct tw_word<8> { typedef unsigned long long type; };
template <typename T, typename Combine>
static __device__ __forceinline__ void tw_update(T *place, Combine combine) {
  typedef typename tw_word<sizeof(T)>::type word;
  word *at = (word *)place, before, seen = *(volatile word *)at;
  do {
    before = seen;
    seen = atomicCAS(at, before, tw_bits<word>(combine(tw_bits<T>(before))));
  } while (seen != before);
}
template <typename T>
static __device__ __forceinline__ void tw_add(T *place, T value) {
  atomicAdd(place, value);
}
static __device__ __forceinline__ void tw_add(long long *place, long long value) {
  atomicAdd((unsigned long long *)place, (unsigned long long)value);
}
#endif
static __device__ __forceinline__ float tw_from_bfloat(unsigned short bits) {
  return tw_bits<float>((unsigned)bits << 16);
}
/* Round to nearest, ties to even. */
static __device__ __forceinline__ unsigned short tw_to_bfloat(float value) {
  unsigned bits = tw_bits<unsigned>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 64u);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static __device__ __forceinline__ float tw_nan() { return tw_bits<float>(0x7fc00000u); }
static __device__ __forceinline__ float tw_infinity() { return tw_bits<float>(0x7f800000u); }
template <typename T>
static __device__ __forceinline__ T tw_min(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
static __device__ __forceinline__ T tw_max(T a, T b) {
  return a > b ? a : b;
}
template <typename T>
static __device__ __forceinline__ T tw_abs(T a) {
  return a < 0 ? -a : a;
}
template <typename T>
static __device__ __forceinline__ T tw_floor_div(T a, T b) {
  T quotient = a / b;
  return quotient - (a % b != 0 && (a % b < 0) != (b < 0));
}
template <typename T>
static __device__ __forceinline__ T tw_floor_mod(T a, T b) {
  return a - b * tw_floor_div(a, b);
}
template <>
__device__ __forceinline__ float tw_floor_mod(float a, float b) {
  return a - b * floorf(a / b);
}
/* Place of 16-byte chunk `chunk` of a row in a tile of rows of `chunks` chunks: neighbouring rows
 * have it in different banks, so that eight rows are read at once. */
template <int chunks>
static __device__ __forceinline__ int tw_swizzle(int row, int chunk) {
  constexpr int rows_per_line = chunks >= 8 ? 1 : 8 / chunks;
  constexpr int mask = chunks >= 8 ? 7 : chunks - 1;
  return row * chunks + (chunk ^ ((row / rows_per_line) & mask));
}
#if defined(TW_WARPGROUPS)
/* The descriptor of a matrix in shared memory; `bits` are what is known of its form. */
static __device__ __forceinline__ unsigned long long tw_matrix(unsigned long long bits,
                                                               const void *place) {
  return bits | (tw_shared_address(place) & 0x3ffffu) >> 4;
}
#else
static __device__ __forceinline__ void tw_wgmma_publish() {}
template <typename T>
static __device__ __forceinline__ void tw_wgmma_wait(T &) {}
#endif
/* Copy 16 bytes in the background, or store four words at once where not `valid`. */
static __device__ __forceinline__ void tw_copy16_or_fill(void *to, const void *from, bool valid,
                                                         unsigned word) {
  if (valid) tw_copy16(to, from, true);
  else *reinterpret_cast<uint4 *>(to) = uint4{word, word, word, word};
}
/* Read or write neighbouring elements in one access; both sides are aligned to their size. */
template <int bytes>
struct tw_vector;
template <>
struct tw_vector<2> { typedef unsigned short type; };
template <>
struct tw_vector<4> { typedef unsigned int type; };
template <>
struct tw_vector<8> { typedef uint2 type; };
template <>
struct tw_vector<16> { typedef uint4 type; };
template <int lanes, typename T>
static __device__ __forceinline__ void tw_read(T *to, const T *from) {
  typedef typename tw_vector<lanes * sizeof(T)>::type vector;
  *reinterpret_cast<vector *>(to) = *reinterpret_cast<const vector *>(from);
}
template <int lanes, typename T>
static __device__ __forceinline__ void tw_write(T *to, const T *from) {
  typedef typename tw_vector<lanes * sizeof(T)>::type vector;
  *reinterpret_cast<vector *>(to) = *reinterpret_cast<const vector *>(from);
}
/* The ends of the range of an integer type. */
template <typename T>
static __device__ __forceinline__ T tw_lowest() {
  return T(-1) < T(0) ? T(T(1) << (8 * sizeof(T) - 1)) : T(0);
}
template <typename T>
static __device__ __forceinline__ T tw_highest() {
  return T(~tw_lowest<T>());
}
