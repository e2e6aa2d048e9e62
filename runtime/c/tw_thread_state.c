/* tw_thread_state.c - what a module remembers for each thread that calls it.
 *
 * A pthread key instead of _Thread_local: compiled thread-locals of a loaded library need either
 * the few static bytes that the dynamic linker keeps, or one more library at run time.
 * Blocks go on a list that only grows; a thread that ends leaves its block for the next one, and
 * unloading the module frees them all.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "tw_runtime.h"

typedef struct tw_block_of_thread {
  tw_thread_state state;
  atomic_int in_use;
  struct tw_block_of_thread *next;
} block;

static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int ready;
static _Atomic(block *) blocks;

static void give_back(void *state) {
  block *mine = state;
  atomic_store(&mine->in_use, 0);
}

static void create_key(void) { ready = pthread_key_create(&key, give_back) == 0; }

int tw_thread_state_init(void) {
  pthread_once(&once, create_key);
  return ready ? 0 : -1;
}

static block *claim(void) {
  for (block *next = atomic_load(&blocks); next; next = next->next) {
    int free_block = 0;
    if (atomic_compare_exchange_strong(&next->in_use, &free_block, 1)) {
      next->state = (tw_thread_state){0};
      return next;
    }
  }
  block *made = calloc(1, sizeof *made);
  if (!made) return NULL;
  atomic_init(&made->in_use, 1);
  made->next = atomic_load(&blocks);
  while (!atomic_compare_exchange_weak(&blocks, &made->next, made)) {
  }
  return made;
}

tw_thread_state *tw_this_thread(void) {
  static tw_thread_state without_memory; /* only its error text is ever read */
  if (!ready) return &without_memory;
  block *mine = pthread_getspecific(key);
  if (!mine) {
    mine = claim();
    if (mine && pthread_setspecific(key, mine) != 0) {
      give_back(mine);
      mine = NULL;
    }
  }
  return mine ? &mine->state : &without_memory;
}

__attribute__((destructor)) static void unload(void) {
  if (!ready) return;
  ready = 0;
  pthread_key_delete(key);
  for (block *next = atomic_load(&blocks); next;) {
    block *rest = next->next;
    free(next);
    next = rest;
  }
}
