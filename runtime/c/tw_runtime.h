/* tw_runtime.h - what the parts of the runtime inside a module share. Not for clients. */
#ifndef TW_RUNTIME_H
#define TW_RUNTIME_H

#define TILEWRIGHT_NO_LOADER
#include "tilewright.h"

#define TW_ALIGNMENT 64u /* bytes; every tensor in an arena starts at a multiple */
#define TW_CALLER_ALIGNMENT 16u /* what kernels assume; see vector-width in compiler/targets.py */

/* ---- tw_module.c ---- */

/* Set the error text of this thread, printf style; always returns -1. */
int tw_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- tw_cpu_x86.c, tw_cpu_arm.c ---- */

/* Whether this CPU and its system have a feature; false for a name that is not known. */
int tw_cpu_has(const char *name);

/* ---- tw_cpu.c ---- */

/* Write the names in `required` (NULL-terminated) that this CPU or its system lacks to `missing`,
 * separated by spaces; returns how many. */
int tw_cpu_missing(const char *const *required, char *missing, size_t size);

/* ---- tw_thread_state.c ---- */

typedef struct tw_thread_state {
  struct tw_pool *pool;       /* of the run that this thread is in; NULL outside and in tasks */
  struct tw_scratch *scratch; /* of the run or worker */
  char error[1024];
} tw_thread_state;

/* To be called first; nonzero if the process has no room for another pthread key. */
int tw_thread_state_init(void);
tw_thread_state *tw_this_thread(void);

/* ---- tw_memory.c ---- */

/* Zeroed memory aligned to at least a page, in huge pages where that pays; NULL if there is none. */
void *tw_map(size_t bytes);
void tw_unmap(void *memory, size_t bytes);

/* A stack of scratch blocks for the kernels of one thread. It grows to the largest need seen, so
 * that later runs allocate nothing. */
typedef struct tw_scratch {
  char *base;
  size_t capacity;
  size_t used;
  size_t live;   /* blocks handed out */
  size_t demand; /* bytes that the blocks handed out occupy */
  size_t peak;   /* largest demand */
  struct tw_block *overflow;
} tw_scratch;

void tw_scratch_reset(tw_scratch *scratch); /* forget all blocks handed out */
void tw_scratch_level(tw_scratch *scratch, int count); /* room in each for what one needed */
void tw_scratch_release(tw_scratch *scratch);

/* ---- tw_threads.c ---- */

typedef struct tw_pool tw_pool;

/* threads counts the caller, who runs task 0; NULL with the error text set on failure. */
tw_pool *tw_pool_create(int threads);
void tw_pool_destroy(tw_pool *pool);
int tw_pool_threads(const tw_pool *pool);

/* Bracket one run: parallel kernels called by this thread use `pool` until tw_pool_leave. A kernel
 * that failed may have left scratch blocks behind; they are dropped. */
int tw_pool_enter(tw_pool *pool);
void tw_pool_leave(int failed);

/* To be called before the first pool: makes pools survive fork. */
int tw_threads_init(void);
int tw_usable_processors(void);

/* ---- generated for each module ---- */

typedef struct tw_frame {
  char *arena;
  const char *weights;
  void *const *inputs;
  void *const *outputs;
  double *seconds; /* NULL, or the clock before the first and after each call */
} tw_frame;

double tw_now(void);

struct tw_program;

/* What runs a program whose kernels are not of this processor. All set the error text. */
typedef struct tw_device {
  void *(*open)(const struct tw_program *program, const char *weights); /* NULL on failure */
  void (*close)(void *device);
  void *(*context_create)(void *device); /* NULL on failure */
  void (*context_destroy)(void *context);
  int (*run)(void *context, const void *const *inputs, void *const *outputs, double *seconds);
} tw_device;

typedef struct tw_program {
  const char *const *cpu_features; /* NULL-terminated */
  uint32_t code_id;                /* the trailer of the file must have the same */
  uint32_t num_inputs;
  uint32_t num_outputs;
  uint32_t num_calls;
  const tilewright_tensor *inputs;
  const tilewright_tensor *outputs;
  const char *const *call_labels;
  uint64_t arena_bytes;
  uint64_t payload_bytes;
  int (*run)(const tw_frame *frame); /* 0, or 1 + index of the call that failed */
  const tw_device *device;           /* NULL where `run` is what runs the program */
  const void *device_program;        /* what the device needs to know of it */
} tw_program;

extern const tw_program tw_main_program;

#endif /* TW_RUNTIME_H */
