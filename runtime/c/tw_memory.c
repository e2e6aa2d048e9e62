/* tw_memory.c - memory for the arena of a context and the scratch blocks of kernels. */
#include <stdlib.h>
#include <sys/mman.h>

#include "tw_runtime.h"

#define PAGE_BYTES ((size_t)1 << 16) /* the largest page in use */
#define HUGE_PAGE_BYTES ((size_t)2 << 20)

/* A block that did not fit the stack; sits before the bytes handed out. */
struct tw_block {
  struct tw_block *next;
  size_t mapped_bytes;
};

/* Sits before every block handed out, and keeps those bytes aligned. */
typedef union tw_header {
  struct {
    size_t bytes; /* with this header */
    struct tw_block *overflow;
  } block;
  char padding[TW_ALIGNMENT];
} tw_header;

static size_t round_up(size_t bytes, size_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

/* Huge pages start at multiples of their size: map more than asked and give back the ends. */
static void *map_huge(size_t bytes) {
  char *memory = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  size_t before = round_up((uintptr_t)memory, HUGE_PAGE_BYTES) - (uintptr_t)memory;
  if (before) munmap(memory, before);
  if (before < HUGE_PAGE_BYTES) munmap(memory + before + bytes, HUGE_PAGE_BYTES - before);
  madvise(memory + before, bytes, MADV_HUGEPAGE);
  return memory + before;
}

void *tw_map(size_t bytes) {
  bytes = round_up(bytes, PAGE_BYTES);
  if (bytes >= HUGE_PAGE_BYTES) return map_huge(bytes);
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

void tw_unmap(void *memory, size_t bytes) {
  if (memory) munmap(memory, round_up(bytes, PAGE_BYTES));
}

static void release_overflow(tw_scratch *scratch) {
  while (scratch->overflow) {
    struct tw_block *block = scratch->overflow;
    scratch->overflow = block->next;
    tw_unmap(block, block->mapped_bytes);
  }
}

void tw_scratch_release(tw_scratch *scratch) {
  release_overflow(scratch);
  tw_unmap(scratch->base, scratch->capacity);
  *scratch = (tw_scratch){0};
}

/* Make room for `bytes` in one piece, while nothing is handed out. */
static void grow(tw_scratch *scratch, size_t bytes) {
  size_t capacity = round_up(bytes, (size_t)1 << 16);
  if (capacity <= scratch->capacity) return;
  char *base = tw_map(capacity);
  if (!base) return; /* blocks go on overflowing, one by one */
  tw_unmap(scratch->base, scratch->capacity);
  scratch->base = base;
  scratch->capacity = capacity;
}

/* Called when nothing is handed out: make room for the largest demand seen. */
static void settle(tw_scratch *scratch) {
  scratch->used = 0;
  if (!scratch->overflow) return;
  release_overflow(scratch);
  grow(scratch, scratch->peak);
}

void tw_scratch_level(tw_scratch *scratch, int count) {
  size_t peak = 0;
  for (int i = 0; i < count; ++i)
    if (scratch[i].peak > peak) peak = scratch[i].peak;
  for (int i = 0; i < count; ++i) grow(&scratch[i], peak);
}

void tw_scratch_reset(tw_scratch *scratch) {
  scratch->live = 0;
  scratch->demand = 0;
  settle(scratch);
}

static void *allocate(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  tw_scratch *scratch = tw_this_thread()->scratch;
  if (!scratch || bytes > SIZE_MAX / 2) {
    tw_fail("a kernel asked for %llu bytes of scratch memory outside a run",
            (unsigned long long)bytes);
    return NULL;
  }
  size_t need = round_up((size_t)bytes, TW_ALIGNMENT) + sizeof(tw_header);
  tw_header *header;
  if (need <= scratch->capacity - scratch->used) {
    header = (tw_header *)(scratch->base + scratch->used);
    header->block.overflow = NULL;
    scratch->used += need;
  } else {
    size_t mapped = need + TW_ALIGNMENT;
    struct tw_block *block = tw_map(mapped);
    if (!block) {
      tw_fail("out of memory: a kernel asked for %llu bytes of scratch memory",
              (unsigned long long)bytes);
      return NULL;
    }
    block->mapped_bytes = mapped;
    block->next = scratch->overflow;
    scratch->overflow = block;
    header = (tw_header *)((char *)block + TW_ALIGNMENT);
    header->block.overflow = block;
  }
  header->block.bytes = need;
  scratch->live += 1;
  scratch->demand += need;
  if (scratch->demand > scratch->peak) scratch->peak = scratch->demand;
  return header + 1;
}

static int release(int device_type, int device_id, void *memory) {
  (void)device_type, (void)device_id;
  tw_scratch *scratch = tw_this_thread()->scratch;
  tw_header *header = (tw_header *)memory - 1;
  /* Kernels free in reverse order; a block freed out of order stays until all are free. */
  if (!header->block.overflow &&
      (char *)header + header->block.bytes == scratch->base + scratch->used)
    scratch->used -= header->block.bytes;
  scratch->demand -= header->block.bytes;
  scratch->live -= 1;
  if (scratch->live == 0) settle(scratch);
  return 0;
}

/* The slots through which TVM's code calls; its own definitions of them are weak. */
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;
