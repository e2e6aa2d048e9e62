/* Count allocations while a module runs: no_malloc module.so prints how many after the 3rd run. */
#define _GNU_SOURCE
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tilewright.h"

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_memalign(size_t, size_t);

static volatile int count;

/* The module's calls resolve to these, because the executable comes first. */
void *malloc(size_t size) {
  count += 1;
  return __libc_malloc(size);
}

void *calloc(size_t n, size_t size) {
  count += 1;
  return __libc_calloc(n, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  count += 1;
  return __libc_memalign(alignment, size);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset) {
  count += 1;
  return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}

int main(int argc, char **argv) {
  tilewright_module *module = argc > 1 ? tilewright_open(argv[1], 0) : NULL;
  tilewright_context *context = module ? tilewright_context_create(module, 2) : NULL;
  if (!context) {
    fprintf(stderr, "%s\n", tilewright_error());
    return 1;
  }
  char *in = aligned_alloc(64, tilewright_input(module, 0)->size_bytes / 64 * 64 + 128);
  char *out = aligned_alloc(64, tilewright_output(module, 0)->size_bytes / 64 * 64 + 128);
  int before = 0;
  for (int run = 0; run < 20; ++run) {
    if (run == 3) before = count;
    const void *inputs[] = {in + run % 2 * 4}; /* every other run unaligned */
    void *outputs[] = {out + run % 2 * 4};
    if (tilewright_run(module, context, inputs, outputs)) return 1;
  }
  int during = count - before;
  printf("%d then %d\n", before > 0, during);
  return 0;
}
