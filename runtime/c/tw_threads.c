/* tw_threads.c - the threads of one context: they wait a moment spinning, then asleep.
 *
 * A launch publishes a job and bumps `epoch`. The tasks of thread i, its share, are run by thread
 * i if it is awake; the caller runs share 0 and then every share that nobody has started, so a
 * worker that sleeps, or has lost its processor, delays nothing. A share is claimed by setting
 * the worker's `claimed` to the epoch. Who succeeds may read the job: the caller cannot go on to
 * the next one before that share is done. Both sides sleep on futexes only after SPIN_SECONDS,
 * because waking a thread costs more than most kernels.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tw_runtime.h"

#define SPIN_SECONDS 100e-6 /* longer than the serial kernels between two parallel ones */
#define SPINS_PER_CLOCK 64
#define WORKER_STACK_BYTES ((size_t)1 << 20)

typedef struct tw_task_env {
  void *sync;
  int32_t num_task;
} tw_task_env;

typedef int (*tw_task)(int task, tw_task_env *env, void *data);

typedef struct tw_worker {
  _Alignas(64) atomic_uint claimed; /* the last epoch in which this share was claimed */
  struct tw_pool *pool;
  int index;
  pthread_t thread;
} tw_worker;

struct tw_pool {
  int threads; /* with the caller */
  int started; /* workers that run */
  unsigned fork_count;
  tw_worker *workers;  /* [threads]; the first is the caller and has no thread */
  tw_scratch *scratch; /* [threads] */
  /* the job, written by the caller before it bumps epoch */
  tw_task task;
  void *data;
  int32_t num_task;
  atomic_int stop;
  _Alignas(64) atomic_uint epoch;
  atomic_uint sleepers;
  _Alignas(64) atomic_uint pending; /* shares that are not done */
  atomic_uint waiting; /* the caller sleeps until pending is 0 */
  atomic_int failed;
};

static atomic_uint fork_count;

double tw_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int tw_usable_processors(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (int)online : 1;
}

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__ARM_ARCH_7A__)
  __asm__ volatile("yield");
#endif
}

static void futex_wait(atomic_uint *word, unsigned expected) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Spin while *word == value; false if that lasted SPIN_SECONDS. */
static int spin_until_change(atomic_uint *word, unsigned value) {
  double deadline = 0;
  for (;;) {
    for (int i = 0; i < SPINS_PER_CLOCK; ++i) {
      if (atomic_load_explicit(word, memory_order_acquire) != value) return 1;
      relax();
    }
    double now = tw_now();
    if (deadline == 0) deadline = now + SPIN_SECONDS;
    if (now > deadline) return 0;
  }
}

/* Claim a share of the job of `epoch`; false if it is taken, or the job is already done. */
static int claim(tw_worker *worker, unsigned epoch) {
  unsigned last = atomic_load_explicit(&worker->claimed, memory_order_relaxed);
  return (int)(last - epoch) < 0 &&
         atomic_compare_exchange_strong(&worker->claimed, &last, epoch);
}

/* Run a share: the tasks index, index + threads, ... */
static void run_share(tw_pool *pool, int index) {
  tw_task_env env = {NULL, pool->num_task};
  for (int task = index; task < pool->num_task; task += pool->threads)
    if (pool->task(task, &env, pool->data) != 0)
      atomic_store_explicit(&pool->failed, 1, memory_order_relaxed);
}

static void *work(void *argument) {
  tw_worker *worker = argument;
  tw_pool *pool = worker->pool;
  unsigned seen = 0;
  tw_this_thread()->scratch = &pool->scratch[worker->index];
  for (;;) {
    while (!spin_until_change(&pool->epoch, seen)) {
      atomic_fetch_add(&pool->sleepers, 1);
      futex_wait(&pool->epoch, seen);
      atomic_fetch_sub(&pool->sleepers, 1);
    }
    seen = atomic_load(&pool->epoch);
    if (atomic_load(&pool->stop)) return NULL;
    if (!claim(worker, seen)) continue;
    run_share(pool, worker->index);
    if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->waiting))
      futex_wake(&pool->pending, 1);
  }
}

static unsigned publish(tw_pool *pool) {
  unsigned epoch = atomic_fetch_add(&pool->epoch, 1) + 1;
  if (atomic_load(&pool->sleepers)) futex_wake(&pool->epoch, pool->threads);
  return epoch;
}

static void wait_for_workers(tw_pool *pool) {
  for (;;) {
    unsigned pending = atomic_load_explicit(&pool->pending, memory_order_acquire);
    if (pending == 0) return;
    if (spin_until_change(&pool->pending, pending)) continue;
    atomic_store(&pool->waiting, 1);
    futex_wait(&pool->pending, pending);
    atomic_store(&pool->waiting, 0);
  }
}

static int launch(tw_task task, void *data, int num_task) {
  tw_thread_state *self = tw_this_thread();
  tw_pool *pool = self->pool;
  int failed = 0;
  if (!pool || pool->threads == 1) {
    tw_task_env env = {NULL, num_task > 0 ? num_task : 1};
    for (int i = 0; i < env.num_task && !failed; ++i) failed = task(i, &env, data);
    return failed ? -1 : 0;
  }
  pool->task = task;
  pool->data = data;
  pool->num_task = num_task > 0 ? num_task : pool->threads;
  atomic_store_explicit(&pool->failed, 0, memory_order_relaxed);
  atomic_store_explicit(&pool->pending, (unsigned)pool->threads - 1, memory_order_relaxed);
  unsigned epoch = publish(pool);
  self->pool = NULL; /* a launch inside a task runs on its own thread */
  run_share(pool, 0);
  for (int i = 1; i < pool->threads; ++i) {
    if (!claim(&pool->workers[i], epoch)) continue;
    run_share(pool, i);
    atomic_fetch_sub(&pool->pending, 1);
  }
  self->pool = pool;
  wait_for_workers(pool);
  if (!atomic_load_explicit(&pool->failed, memory_order_relaxed)) return 0;
  return tw_fail("a task of a parallel kernel failed; is there enough memory?");
}

static void stop_workers(tw_pool *pool) {
  atomic_store(&pool->stop, 1);
  publish(pool);
  for (int i = 1; i <= pool->started; ++i) pthread_join(pool->workers[i].thread, NULL);
  pool->started = 0;
}

static int start_workers(tw_pool *pool) {
  pthread_attr_t attributes;
  atomic_store(&pool->stop, 0);
  pool->started = 0;
  atomic_store(&pool->epoch, 0);
  atomic_store(&pool->sleepers, 0);
  if (pthread_attr_init(&attributes) != 0) return tw_fail("out of memory");
  pthread_attr_setstacksize(&attributes, WORKER_STACK_BYTES);
  int error = 0;
  for (int i = 1; i < pool->threads && !error; ++i) {
    tw_worker *worker = &pool->workers[i];
    worker->pool = pool;
    worker->index = i;
    atomic_store(&worker->claimed, 0);
    error = pthread_create(&worker->thread, &attributes, work, worker);
    if (!error) pool->started = i;
  }
  pthread_attr_destroy(&attributes);
  if (!error) {
    pool->fork_count = atomic_load(&fork_count);
    return 0;
  }
  int started = pool->started;
  stop_workers(pool);
  return tw_fail("cannot start thread %d of %d: %s", started + 2, pool->threads, strerror(error));
}

static void free_pool(tw_pool *pool) {
  for (int i = 0; pool->scratch && i < pool->threads; ++i) tw_scratch_release(&pool->scratch[i]);
  free(pool->scratch);
  free(pool->workers);
  free(pool);
}

tw_pool *tw_pool_create(int threads) {
  tw_pool *pool = aligned_alloc(64, sizeof *pool);
  if (!pool) {
    tw_fail("out of memory");
    return NULL;
  }
  memset(pool, 0, sizeof *pool);
  pool->threads = threads;
  pool->workers = aligned_alloc(64, (size_t)threads * sizeof *pool->workers);
  pool->scratch = calloc((size_t)threads, sizeof *pool->scratch);
  if (!pool->workers || !pool->scratch) {
    tw_fail("out of memory");
  } else if (start_workers(pool) == 0) {
    return pool;
  }
  free_pool(pool);
  return NULL;
}

void tw_pool_destroy(tw_pool *pool) {
  /* After a fork the workers live in the parent only. */
  if (pool->fork_count == atomic_load(&fork_count)) stop_workers(pool);
  free_pool(pool);
}

int tw_pool_threads(const tw_pool *pool) { return pool->threads; }

int tw_pool_enter(tw_pool *pool) {
  if (pool->fork_count != atomic_load_explicit(&fork_count, memory_order_relaxed) &&
      start_workers(pool) != 0)
    return -1;
  tw_thread_state *self = tw_this_thread();
  self->pool = pool;
  self->scratch = &pool->scratch[0];
  return 0;
}

void tw_pool_leave(int failed) {
  tw_thread_state *self = tw_this_thread();
  tw_pool *pool = self->pool;
  if (failed)
    for (int i = 0; i < pool->threads; ++i) tw_scratch_reset(&pool->scratch[i]);
  else
    /* A worker that came too late for every share so far has its room before it needs it. */
    tw_scratch_level(pool->scratch, pool->threads);
  self->pool = NULL;
  self->scratch = NULL;
}

static void after_fork_in_child(void) { atomic_fetch_add(&fork_count, 1); }

static int fork_error;

static void prepare_for_fork(void) {
  fork_error = pthread_atfork(NULL, NULL, after_fork_in_child);
}

int tw_threads_init(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, prepare_for_fork);
  return fork_error ? tw_fail("cannot prepare for fork: %s", strerror(fork_error)) : 0;
}

/* The slot through which TVM's code calls; its own definition of it is weak. */
int (*__TVMBackendParallelLaunch)(tw_task, void *, int) = launch;
