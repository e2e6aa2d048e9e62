/* tw_board.c - the runner for boards: one static program, no files, no network of its own.
 *
 * It serves the host that started it (through ssh, or as a child) over standard input and output,
 * and ends with it. Requests are lines of text, some followed by bytes:
 *
 *     hello                         ok tilewright-board VERSION MACHINE PROCESSORS NAME
 *     put NAME SIZE\n bytes         ok                  keep bytes under a name
 *     drop                          ok                  forget all bytes
 *     measure THREADS TIMEOUT_MS ROUNDS BUDGET_US LIMIT_NS OUTPUTS COUNT
 *       COUNT lines LIBRARY ARGUMENT..., each =NAME (input) or :SIZE (output)
 *                                   ok SIZE REASON\n bytes, see tw_measure
 *
 * REASON is "exit N", "signal N" or "timeout". A request that cannot be understood is answered by
 * "error TEXT". Kernels run in a child process, so that what they do costs only themselves.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tw_board.h"

static tw_blob *blobs;

static void answer(const char *text) {
  fputs(text, stdout);
  fputc('\n', stdout);
  fflush(stdout);
}

static const tw_blob *find(const char *name) {
  for (tw_blob *blob = blobs; blob; blob = blob->next)
    if (strcmp(blob->name, name) == 0) return blob;
  return NULL;
}

static void drop_all(void) {
  while (blobs) {
    tw_blob *next = blobs->next;
    free(blobs->data);
    free(blobs);
    blobs = next;
  }
}

static void processor_name(char *name, size_t size) {
  static const char *const keys[] = {"Model", "model name", "Hardware", "CPU part"};
  snprintf(name, size, "unknown processor");
  for (size_t k = 0; k < sizeof keys / sizeof keys[0]; ++k) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
      char *value = strchr(line, ':');
      if (strncmp(line, keys[k], strlen(keys[k])) != 0 || !value || value[1] == '\n') continue;
      snprintf(name, size, "%s", value + 2);
      name[strcspn(name, "\n")] = '\0';
      fclose(file);
      return;
    }
    if (file) fclose(file);
  }
}

static void hello(void) {
  struct utsname system;
  char name[256], text[400];
  uname(&system);
  processor_name(name, sizeof name);
  snprintf(text, sizeof text, "ok tilewright-board %d %s %ld %s", TW_BOARD_VERSION, system.machine,
           sysconf(_SC_NPROCESSORS_ONLN), name);
  answer(text);
}

static void put(const char *line) {
  tw_blob *blob = calloc(1, sizeof *blob);
  unsigned long long size;
  if (!blob || sscanf(line, "put %127s %llu", blob->name, &size) != 2) {
    free(blob);
    answer("error put needs a name and a size");
    return;
  }
  blob->size = (size_t)size;
  blob->data = aligned_alloc(64, (blob->size + 64) / 64 * 64);
  size_t left = blob->size;
  for (char *to = blob->data; left > 0;) {
    char nowhere[4096];
    size_t wanted = blob->data || left < sizeof nowhere ? left : sizeof nowhere;
    size_t got = fread(blob->data ? to : nowhere, 1, wanted, stdin);
    if (got == 0) exit(0);
    left -= got;
    if (blob->data) to += got;
  }
  if (!blob->data) {
    free(blob);
    answer("error out of memory");
    return;
  }
  blob->next = blobs;
  blobs = blob;
  answer("ok");
}

/* Read the lines of entries; NULL, or what is wrong with them (all lines are read). */
static const char *read_entries(tw_entry *entries, int count) {
  const char *problem = NULL;
  char *line = NULL, *rest;
  size_t room = 0;
  for (int i = 0; i < count; ++i) {
    if (getline(&line, &room, stdin) < 0) exit(0);
    char *word = strtok_r(line, " \n", &rest);
    entries[i].library = word ? find(word) : NULL;
    if (!entries[i].library) problem = "there is no such library";
    while ((word = strtok_r(NULL, " \n", &rest))) {
      int at = entries[i].count++;
      if (at >= TW_MOST_ARGUMENTS) {
        problem = "too many arguments";
        entries[i].count = 0;
      } else if (*word == ':') {
        entries[i].sizes[at] = (size_t)strtoull(word + 1, NULL, 10);
      } else if (!(entries[i].inputs[at] = find(word + 1))) {
        problem = "there is no such input";
      }
    }
  }
  free(line);
  return problem;
}

static double clock_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Collect what a child writes until it ends or the time is up; 1 if it had to be ended. */
static int collect(int descriptor, double deadline, char **data, size_t *size) {
  size_t room = 0;
  for (;;) {
    double left = deadline - clock_s();
    struct pollfd waited = {.fd = descriptor, .events = POLLIN};
    int ready = left > 0 ? poll(&waited, 1, (int)(left * 1e3) + 1) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return 1;
    if (room - *size < 65536) {
      room = 2 * room + (1u << 17);
      char *larger = realloc(*data, room);
      if (!larger) return 1;
      *data = larger;
    }
    ssize_t got = read(descriptor, *data + *size, room - *size);
    if (got <= 0) return 0;
    *size += (size_t)got;
  }
}

static void run_in_child(const tw_request *request, double timeout_s) {
  int ends[2], status = 0;
  if (pipe(ends) != 0) {
    answer("error no pipe");
    return;
  }
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ends[0]);
    _exit(tw_measure(request, ends[1]));
  }
  close(ends[1]);
  if (child < 0) {
    close(ends[0]);
    answer("error no process");
    return;
  }
  char *data = NULL, reason[64];
  size_t size = 0;
  int late = collect(ends[0], clock_s() + timeout_s, &data, &size);
  if (late) kill(child, SIGKILL);
  close(ends[0]);
  waitpid(child, &status, 0);
  if (late)
    snprintf(reason, sizeof reason, "timeout");
  else if (WIFSIGNALED(status))
    snprintf(reason, sizeof reason, "signal %d", WTERMSIG(status));
  else
    snprintf(reason, sizeof reason, "exit %d", WEXITSTATUS(status));
  printf("ok %zu %s\n", size, reason);
  fwrite(data, 1, size, stdout);
  fflush(stdout);
  free(data);
}

static void measure(const char *line) {
  tw_request request = {0};
  int timeout_ms, budget_us;
  long long limit_ns;
  if (sscanf(line, "measure %d %d %d %d %lld %d %d", &request.threads, &timeout_ms, &request.rounds,
             &budget_us, &limit_ns, &request.want_outputs, &request.count) != 7 ||
      request.threads < 1 || request.rounds < 1 || request.count < 1) {
    answer("error measure needs 7 numbers");
    return;
  }
  request.budget_s = 1e-6 * budget_us;
  request.limit_s = 1e-9 * (double)limit_ns;
  request.entries = calloc((size_t)request.count, sizeof *request.entries);
  if (!request.entries) exit(1);
  const char *problem = read_entries(request.entries, request.count);
  if (problem)
    printf("error %s\n", problem), fflush(stdout);
  else
    run_in_child(&request, 1e-3 * timeout_ms);
  free(request.entries);
}

int main(void) {
  char *line = NULL;
  size_t room = 0;
  while (getline(&line, &room, stdin) >= 0) {
    if (strncmp(line, "hello", 5) == 0)
      hello();
    else if (strncmp(line, "put ", 4) == 0)
      put(line);
    else if (strncmp(line, "drop", 4) == 0)
      drop_all(), answer("ok");
    else if (strncmp(line, "measure ", 8) == 0)
      measure(line);
    else
      answer("error unknown request");
  }
  free(line);
  return 0;
}
