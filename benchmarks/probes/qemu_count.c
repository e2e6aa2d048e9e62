/* A plugin for qemu-user (TCG plugin API, version 1): counts the instructions that a program
 * executes, by kind, and prints the counts when it ends.
 *
 *     cc -shared -fPIC -O2 qemu_count.c -o qemu_count.so
 *     qemu-aarch64 -d plugin -D counts.txt -plugin ./qemu_count.so ./program
 *
 * Debian ships no qemu-plugin.h; what is declared here are those functions of
 * https://www.qemu.org/docs/master/devel/tcg-plugins.html that are called.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t {
  const char *target_name;
} qemu_info_t; /* and more behind it */
typedef void (*translated)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*ended)(qemu_plugin_id_t, void *);
enum { INLINE_ADD_U64 = 0 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, ended, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *,
                                                       uint64_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *);
extern void qemu_plugin_outs(const char *);

int qemu_plugin_version = 1;

enum { MULTIPLY_ADD, LOAD, STORE, OTHER, KINDS };
static const char *const names[KINDS] = {"multiply_add", "load", "store", "other"};
static uint64_t counts[KINDS];
static int is_aarch64;

/* How the text of an instruction starts, and its kind; the first match counts. */
static const struct {
  const char *start;
  int kind;
} texts[] = {
    {"fmla", MULTIPLY_ADD},  {"fmls", MULTIPLY_ADD},  {"smull", MULTIPLY_ADD},
    {"smlal", MULTIPLY_ADD}, {"vfma", MULTIPLY_ADD},  {"vmlal", MULTIPLY_ADD},
    {"vmull", MULTIPLY_ADD}, {"ld", LOAD},            {"vld", LOAD},
    {"st", STORE},           {"vst", STORE},
};

/* What qemu's disassembler does not know: dot products and matrix products of bytes
 * (Arm Architecture Reference Manual, C4.1: Advanced SIMD three same (extra), vector x element). */
static const struct {
  uint32_t mask, value;
} products[] = {
    {0x9fe0fc00, 0x0e809400}, /* sdot, udot: vectors */
    {0x9fc0f400, 0x0f80e000}, /* sdot, udot: by element */
    {0xbfe0fc00, 0x0e809c00}, /* usdot: vectors */
    {0xbf40f400, 0x0f00f000}, /* sudot, usdot: by element */
    {0xdfe0fc00, 0x4e80a400}, /* smmla, ummla */
    {0xffe0fc00, 0x4e80ac00}, /* usmmla */
};

static int kind_of(const struct qemu_plugin_insn *instruction) {
  uint32_t word;
  memcpy(&word, qemu_plugin_insn_data(instruction), sizeof word);
  for (size_t i = 0; is_aarch64 && i < sizeof products / sizeof products[0]; ++i)
    if ((word & products[i].mask) == products[i].value) return MULTIPLY_ADD;
  char *text = qemu_plugin_insn_disas(instruction);
  int kind = OTHER;
  for (size_t i = 0; kind == OTHER && i < sizeof texts / sizeof texts[0]; ++i)
    if (strncmp(text, texts[i].start, strlen(texts[i].start)) == 0) kind = texts[i].kind;
  free(text);
  return kind;
}

static void count_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
    qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64, &counts[kind_of(instruction)],
                                               1);
  }
}

static void print_counts(qemu_plugin_id_t id, void *unused) {
  (void)id, (void)unused;
  char line[64];
  for (int i = 0; i < KINDS; ++i) {
    snprintf(line, sizeof line, "%s %llu\n", names[i], (unsigned long long)counts[i]);
    qemu_plugin_outs(line);
  }
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
  (void)argc, (void)argv;
  is_aarch64 = strcmp(info->target_name, "aarch64") == 0;
  qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
  qemu_plugin_register_atexit_cb(id, print_counts, NULL);
  return 0;
}
