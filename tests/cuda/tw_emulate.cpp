/* tw_emulate.cpp - the threads of a block as coroutines; see tw_emulate.h. */
#include "tw_emulate.h"

#include <ucontext.h>

#include <deque>
#include <vector>

struct tw_copy { void *to; const void *from; };
struct tw_fiber {
  ucontext_t context;
  std::vector<char> stack;
  tw_dim3 thread;
  tw_state state;
  unsigned parity;
  std::vector<tw_copy> open;
  std::deque<std::vector<tw_copy>> groups;
  std::vector<std::function<void()>> issued, committed;
};
struct tw_block_state {
  ucontext_t scheduler;
  tw_fiber *current;
  std::vector<tw_fiber> fibers;
  std::vector<tw_slot> slots[2];
  void *kernel;
  void **arguments;
};
static tw_block_state tw_block;
tw_view tw_now;
extern "C" {
int tw_backwards = 0;
}

void tw_wait(tw_state state) {
  tw_fiber *self = tw_block.current;
  self->state = state;
  swapcontext(&self->context, &tw_block.scheduler);
}

const tw_slot *tw_exchange(const tw_slot &mine) {
  tw_fiber *self = tw_block.current;
  std::vector<tw_slot> &slots = tw_block.slots[self->parity ^= 1];
  slots[self->thread.x] = mine;
  tw_wait(TW_AT_WARP);
  return &slots[self->thread.x / 32 * 32];
}

void tw_start_copy(void *to, const void *from) {
  memset(to, 0xff, 16);
  tw_block.current->open.push_back({to, from});
}
void tw_end_group(void) {
  tw_fiber *self = tw_block.current;
  self->groups.push_back(self->open);
  self->open.clear();
}
void tw_wait_groups(int pending) {
  tw_fiber *self = tw_block.current;
  while ((int)self->groups.size() > pending) {
    for (const tw_copy &copy : self->groups.front())
      if (copy.from) memcpy(copy.to, copy.from, 16);
      else memset(copy.to, 0, 16);
    self->groups.pop_front();
  }
}

void tw_later(const std::function<void()> &work) { tw_block.current->issued.push_back(work); }
void tw_commit_later(void) {
  tw_fiber *self = tw_block.current;
  for (const std::function<void()> &work : self->issued) self->committed.push_back(work);
  self->issued.clear();
}
void tw_wait_later(void) {
  tw_fiber *self = tw_block.current;
  for (const std::function<void()> &work : self->committed) work();
  self->committed.clear();
}

static void tw_thread_main() {
  typedef void *p;
  typedef void (*function)(p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p, p);
  void **a = tw_block.arguments;
  ((function)tw_block.kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10],
                              a[11], a[12], a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20],
                              a[21], a[22], a[23]);
  tw_wait(TW_DONE);
}

static bool tw_all(size_t first, size_t last, tw_state state) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    if (tw_block.fibers[i].state == TW_DONE) continue;
    if (tw_block.fibers[i].state != state) return false;
    any = true;
  }
  return any;
}
static bool tw_release(size_t first, size_t last, tw_state state) {
  if (!tw_all(first, last, state)) return false;
  for (size_t i = first; i < last; ++i)
    if (tw_block.fibers[i].state == state) tw_block.fibers[i].state = TW_READY;
  return true;
}

static void tw_run_block(int threads) {
  for (int i = 0; i < threads; ++i) {
    tw_fiber &fiber = tw_block.fibers[i];
    fiber.thread = {i, 0, 0};
    fiber.state = TW_READY;
    fiber.parity = 0;
    fiber.open.clear();
    fiber.groups.clear();
    fiber.issued.clear();
    fiber.committed.clear();
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = NULL;
    makecontext(&fiber.context, tw_thread_main, 0);
  }
  for (;;) {
    bool progress = false, done = true;
    for (int n = 0; n < threads; ++n) {
      tw_fiber &fiber = tw_block.fibers[tw_backwards ? threads - 1 - n : n];
      if (fiber.state == TW_READY) {
        tw_block.current = &fiber;
        tw_now.thread = fiber.thread;
        swapcontext(&tw_block.scheduler, &fiber.context);
        progress = true;
      }
      done = done && fiber.state == TW_DONE;
    }
    if (done) return;
    for (int warp = 0; warp < threads; warp += 32)
      progress |= tw_release(warp, warp + 32, TW_AT_WARP);
    progress |= tw_release(0, threads, TW_AT_BARRIER);
    if (!progress) {
      fprintf(stderr, "threads of a block wait for each other\n");
      abort();
    }
  }
}

/* Run a kernel; arguments are pointers. Shared memory starts as rubbish and ends in a guard. */
extern "C" void tw_emulate(void *kernel, int gx, int gy, int gz, int threads, int shared_bytes,
                           void **arguments, int count) {
  std::vector<unsigned char> shared(shared_bytes + 2048);
  void *padded[24] = {};
  memcpy(padded, arguments, count * sizeof *arguments);
  tw_block.kernel = kernel;
  tw_block.arguments = padded;
  tw_block.fibers.resize(threads);
  for (tw_fiber &fiber : tw_block.fibers) fiber.stack.resize(1 << 16);
  for (std::vector<tw_slot> &slots : tw_block.slots) slots.resize(threads);
  tw_now.shared = (unsigned char *)(((uintptr_t)shared.data() + 1023) / 1024 * 1024);
  for (int z = 0; z < gz; ++z)
    for (int y = 0; y < gy; ++y)
      for (int x = 0; x < gx; ++x) {
        memset(tw_now.shared, 0xff, shared_bytes);
        memset(tw_now.shared + shared_bytes, 0x5a, 128);
        tw_now.block = {x, y, z};
        tw_run_block(threads);
        for (int i = 0; i < 128; ++i)
          if (tw_now.shared[shared_bytes + i] != 0x5a) {
            fprintf(stderr, "a block wrote past its shared memory\n");
            abort();
          }
      }
}
