/* tw_emulate.h - runs generated CUDA kernels on the CPU, thread by thread.
 *
 * Every thread of a block is a coroutine. Barriers, shuffles and matrix instructions hand over to
 * the next one, so that what is read before it was written shows: copies in the background poison
 * their target until they are waited for, and threads run forwards or backwards (tw_backwards).
 * Fragments of matrix instructions are laid out as in the PTX ISA.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <functional>

#define __device__
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define TW_SHARED unsigned char *const tw_shared = tw_now.shared
#define TW_GLOBAL(threads) extern "C" void
#define TW_BARRIER() tw_wait(TW_AT_BARRIER)
#define threadIdx (tw_now.thread)
#define blockIdx (tw_now.block)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct tw_dim3 { int x, y, z; };
#define TW_VECTORS(type)                                                                  \
  struct type##2 { type x, y; };                                                          \
  struct type##3 { type x, y, z; };                                                       \
  struct alignas(16) type##4 { type x, y, z, w; };                                        \
  static type##2 make_##type##2(type x, type y) { return {x, y}; }                        \
  static type##3 make_##type##3(type x, type y, type z) { return {x, y, z}; }             \
  static type##4 make_##type##4(type x, type y, type z, type w) { return {x, y, z, w}; }
TW_VECTORS(float)
TW_VECTORS(int)

enum tw_state { TW_READY, TW_AT_BARRIER, TW_AT_WARP, TW_DONE };
struct tw_slot { unsigned word[6]; const void *row; double value; };

/* What the thread that runs now can see. */
struct tw_view {
  tw_dim3 thread, block;
  unsigned char *shared;
};
extern tw_view tw_now;

/* Hand over to the next thread until all of the block, or the warp, have come here. */
void tw_wait(tw_state state);
/* Give the other lanes of the warp a slot; returns the slots of the warp when all have given. */
const tw_slot *tw_exchange(const tw_slot &mine);
/* A background copy, of zeros where from is NULL; the target is poisoned until it is waited for. */
void tw_start_copy(void *to, const void *from);
void tw_end_group(void);
void tw_wait_groups(int pending);
/* Work of a warpgroup: it is done when it has been committed and is waited for. */
void tw_later(const std::function<void()> &work);
void tw_commit_later(void);
void tw_wait_later(void);

template <typename T>
static T tw_shuffle(T value, int lane) {
  tw_slot mine = {};
  memcpy(&mine.value, &value, sizeof value);
  const tw_slot *warp = tw_exchange(mine);
  T other;
  memcpy(&other, &warp[lane].value, sizeof other);
  return other;
}
#define TW_SHUFFLE(value, lane) tw_shuffle(value, lane)
#define TW_SHUFFLE_XOR(value, mask) tw_shuffle(value, threadIdx.x % 32 ^ (mask))

/* Threads take turns at barriers alone. */
template <typename T, typename Combine>
static void tw_update(T *place, Combine combine) {
  *place = combine(*place);
}
template <typename T>
static void tw_add(T *place, T value) {
  *place += value;
}

static float tw_from_half(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return (float)half;
}
static unsigned short tw_to_half(float value) {
  _Float16 half = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}
/* Round to nearest, ties away from zero, to 10 bits. */
static unsigned tw_to_tf32(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return (bits + 0x1000u) & ~0x1fffu;
}

static void tw_copy16(void *to, const void *from, bool valid) {
  if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16)) {
    fprintf(stderr, "a copy of 16 bytes is not aligned\n");
    abort();
  }
  tw_start_copy(to, valid ? from : NULL);
}
static void tw_copy_commit() { tw_end_group(); }
template <int pending>
static void tw_copy_wait() {
  tw_wait_groups(pending);
}

/* The rows that all lanes of the warp give. */
static const tw_slot *tw_rows(const void *row) {
  tw_slot mine = {};
  mine.row = row;
  return tw_exchange(mine);
}
static void tw_load_matrix4(unsigned (&r)[4], const void *row) {
  const tw_slot *warp = tw_rows(row);
  int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i)
    memcpy(&r[i], (const char *)warp[i * 8 + lane / 4].row + lane % 4 * 4, 4);
}

static void tw_load_turned4(unsigned (&r)[4], const void *row) {
  const tw_slot *warp = tw_rows(row);
  int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i)
    for (int e = 0; e < 2; ++e)
      memcpy((char *)&r[i] + 2 * e, (const char *)warp[i * 8 + lane % 4 * 2 + e].row + lane / 4 * 2, 2);
}

static tw_slot tw_fragments(const unsigned (&a)[4], unsigned b0, unsigned b1) {
  return {{a[0], a[1], a[2], a[3], b0, b1}, NULL, 0};
}
static float tw_word_float(unsigned word) {
  float value;
  memcpy(&value, &word, 4);
  return value;
}
/* Element k of row `row` of A, or of column `row` of B; an instruction has `per` in a word. */
template <int per, typename Decode>
static auto tw_element(const tw_slot *warp, bool is_b, int row, int k, Decode decode) {
  int chunk = k / (4 * per), lane = row % 8 * 4 + k % (4 * per) / per;
  unsigned word = is_b ? warp[lane].word[4 + chunk] : warp[lane].word[row / 8 + 2 * chunk];
  return decode(word, k % per);
}
template <int per, typename Sum, typename Left, typename Right>
static void tw_mma(Sum (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, Left left,
                   Right right) {
  const tw_slot *warp = tw_exchange(tw_fragments(a, b0, b1));
  int lane = threadIdx.x % 32;
  for (int e = 0; e < 4; ++e)
    for (int k = 0; k < 8 * per; ++k)
      c[e] += tw_element<per>(warp, false, lane / 4 + e / 2 * 8, k, left) *
              tw_element<per>(warp, true, lane % 4 * 2 + e % 2, k, right);
}
static float tw_tf32(unsigned word, int) { return tw_word_float(word & ~0x1fffu); }
static float tw_half(unsigned word, int i) { return tw_from_half((unsigned short)(word >> 16 * i)); }
static float tw_bfloat(unsigned word, int i) { return tw_word_float((word >> 16 * i) << 16); }
static int tw_s8(unsigned word, int i) { return (signed char)(word >> 8 * i); }
static int tw_u8(unsigned word, int i) { return (unsigned char)(word >> 8 * i); }
#define TW_MMA(name, sum, per, left, right)                                                     \
  static void name(sum(&c)[4], const unsigned(&a)[4], unsigned b0, unsigned b1) {               \
    tw_mma<per>(c, a, b0, b1, left, right);                                                     \
  }
TW_MMA(tw_mma_tf32, float, 1, tw_tf32, tw_tf32)
TW_MMA(tw_mma_half, float, 2, tw_half, tw_half)
TW_MMA(tw_mma_bfloat, float, 2, tw_bfloat, tw_bfloat)
TW_MMA(tw_mma_s8s8, int, 4, tw_s8, tw_s8)
TW_MMA(tw_mma_u8s8, int, 4, tw_u8, tw_s8)
TW_MMA(tw_mma_s8u8, int, 4, tw_s8, tw_u8)
TW_MMA(tw_mma_u8u8, int, 4, tw_u8, tw_u8)
/* Products of a warpgroup: nothing happens before they are waited for, as late as may be. */
#if defined(TW_WARPGROUPS)
static unsigned tw_shared_address(const void *place) {
  return (unsigned)((const unsigned char *)place - tw_now.shared);
}
static void tw_wgmma_publish() {}
template <typename T>
static void tw_wgmma_begin(T &) {}
static void tw_wgmma_commit() { tw_commit_later(); }
template <typename T>
static void tw_wgmma_wait(T &) {
  tw_wait_later();
}

/* Where element (row, byte) of a described matrix is: "Swizzling Modes" and "Strides" of the PTX
 * ISA, for matrices with the depth innermost. */
static const unsigned char *tw_described(unsigned long long matrix, int row, int byte) {
  unsigned start = (unsigned)(matrix & 0x3fff) << 4, stride = (unsigned)(matrix >> 32 & 0x3fff) << 4;
  unsigned width = 256u >> (matrix >> 62); /* mode 1: 128 bytes, 2: 64, 3: 32 */
  unsigned address = start + row / 8 * stride + row % 8 * width + byte;
  unsigned line = address / 128, turned = line % (width / 16);
  return tw_now.shared + (address ^ turned << 4);
}
template <int columns, int bytes, typename Sum, typename Left, typename Right>
static void tw_wgmma(Sum (&d)[columns][4], unsigned long long a, unsigned long long b, Left left,
                     Right right) {
  int lane = threadIdx.x % 32, first = threadIdx.x / 32 % 4 * 16;
  Sum(*sums)[4] = d;
  tw_later([=] {
    for (int j = 0; j < columns; ++j)
      for (int e = 0; e < 4; ++e) {
        int row = first + lane / 4 + e / 2 * 8, column = j * 8 + lane % 4 * 2 + e % 2;
        for (int k = 0; k < 32; k += bytes)
          sums[j][e] += left(tw_described(a, row, k)) * right(tw_described(b, column, k));
      }
  });
}
static float tw_at_half(const unsigned char *p) { return tw_from_half(*(const unsigned short *)p); }
static float tw_at_bfloat(const unsigned char *p) { return tw_word_float(*(const unsigned short *)p << 16); }
static int tw_at_s8(const unsigned char *p) { return (signed char)*p; }
static int tw_at_u8(const unsigned char *p) { return *p; }
#define TW_WGMMA(name, sum, bytes, left, right)                                                 \
  template <int n>                                                                              \
  static void name(sum(&d)[n][4], unsigned long long a, unsigned long long b) {                 \
    tw_wgmma<n, bytes>(d, a, b, left, right);                                                   \
  }
TW_WGMMA(tw_wgmma_half, float, 2, tw_at_half, tw_at_half)
TW_WGMMA(tw_wgmma_bfloat, float, 2, tw_at_bfloat, tw_at_bfloat)
TW_WGMMA(tw_wgmma_s8s8, int, 1, tw_at_s8, tw_at_s8)
TW_WGMMA(tw_wgmma_u8s8, int, 1, tw_at_u8, tw_at_s8)
TW_WGMMA(tw_wgmma_s8u8, int, 1, tw_at_s8, tw_at_u8)
TW_WGMMA(tw_wgmma_u8u8, int, 1, tw_at_u8, tw_at_u8)
#endif
static int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
static float rsqrtf(float value) { return 1.0f / sqrtf(value); }
static double rsqrt(double value) { return 1.0 / sqrt(value); }

/* What the CUDA C of TVM is written in: blocks run one after the other, so one array is enough. */
#define __shared__ static
#define __syncthreads() TW_BARRIER()
#define tvm_builtin_ptx_cp_async_commit_group_async_commit_group() tw_copy_commit()
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_0() tw_copy_wait<0>()
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_1() tw_copy_wait<1>()
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_2() tw_copy_wait<2>()
#define tvm_builtin_ptx_cp_async_wait_group_async_wait_group_3() tw_copy_wait<3>()
#define alignas(bytes) __attribute__((aligned(bytes)))
