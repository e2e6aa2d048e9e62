/* tw_board.h - what the parts of the runner for boards share. Not part of any module. */
#ifndef TW_BOARD_H
#define TW_BOARD_H

#include <stddef.h>

#define TW_BOARD_VERSION 1

/* ---- tw_board_elf.c ---- */

typedef struct tw_elf {
  const char *file; /* stays in use */
  char *base;
  size_t span;
} tw_elf;

/* Load a shared object from memory; NULL, or why it cannot be. */
const char *tw_elf_load(const char *file, size_t size, tw_elf *loaded);
void *tw_elf_symbol(const tw_elf *loaded, const char *name);

/* ---- tw_board_measure.c ---- */

typedef struct tw_blob {
  char name[128];
  char *data; /* 64-byte aligned */
  size_t size;
  struct tw_blob *next;
} tw_blob;

/* One kernel and what it is called with; argument i is an input, or an output of `sizes[i]`. */
enum { TW_MOST_ARGUMENTS = 24 };
typedef struct tw_entry {
  const tw_blob *library;
  int count;
  const tw_blob *inputs[TW_MOST_ARGUMENTS]; /* NULL for an output */
  size_t sizes[TW_MOST_ARGUMENTS];
} tw_entry;

typedef struct tw_request {
  int threads;
  int rounds;       /* of timing, at most */
  double budget_s;  /* of timing one kernel */
  double limit_s;   /* slower kernels are not timed further; 0 for no limit */
  int want_outputs; /* write what each kernel computed */
  int count;
  tw_entry *entries;
} tw_request;

/* Run the entries in turns and write what comes out to a file descriptor, as text and bytes:
 *
 *     output SIZE\n bytes    for each output of each entry, where wanted
 *     times ENTRY s s s\n    seconds of each run
 *     peak OPERATIONS\n      multiply-add operations a second
 *     error TEXT\n           and nothing else, where a kernel cannot be run
 *
 * Returns the exit status of the process. */
int tw_measure(const tw_request *request, int descriptor);

#endif /* TW_BOARD_H */
