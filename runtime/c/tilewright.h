/* tilewright.h - load and run a module that tilewright compiled. C11 or C++11, Linux.
 *
 * This header is the whole client: copy it beside your program and link with -ldl (nothing at all
 * with glibc 2.34 or newer). A module is one .so file that holds code, weights and a description.
 *
 *     tilewright_module *module = tilewright_open("model.so", 0);
 *     if (!module) { fprintf(stderr, "%s\n", tilewright_error()); return 1; }
 *     tilewright_context *context = tilewright_context_create(module, 0);
 *     int failed = tilewright_run(module, context, inputs, outputs);
 *     tilewright_context_destroy(module, context);
 *     tilewright_close(module);
 *
 * Modules of the format static or c are linked into the program instead: define TILEWRIGHT_STATIC
 * before this header, and give tilewright_open() the file of weights. One model for a program.
 *
 * Threads: any number of threads may share one module; each uses a context of its own at a time.
 * Buffers: row-major, of the shapes that tilewright_input() and tilewright_output() state. Those
 * aligned to 16 bytes, as malloc gives them, are used in place, others are copied; no output may
 * overlap another buffer.
 * Fork: a module and its idle contexts keep working in the child.
 * Errors: functions return NULL or nonzero, and tilewright_error() gives the text of the last
 * failure in the calling thread.
 */
#ifndef TILEWRIGHT_H
#define TILEWRIGHT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TILEWRIGHT_ABI_VERSION 1u
#define TILEWRIGHT_FORMAT_VERSION 1u
#define TILEWRIGHT_API_SYMBOL "tilewright_api"
#define TILEWRIGHT_MAGIC "TWMODULE"

/* Flags of tilewright_open. The checksums of code and description are always verified, that of the
 * weights only when they are smaller than 64 MiB, unless a flag says otherwise. */
#define TILEWRIGHT_VERIFY_WEIGHTS 1u
#define TILEWRIGHT_SKIP_WEIGHTS_CHECK 2u

typedef struct tilewright_module tilewright_module;
typedef struct tilewright_context tilewright_context;

/* One input or output. dtype is a numpy name: "float32", "int64", "bool", ... */
typedef struct tilewright_tensor {
  const char *name;
  const char *dtype;
  const int64_t *shape;
  uint32_t ndim;
  uint64_t size_bytes;
} tilewright_tensor;

/* The last bytes of a module file, little endian. Layout of the file:
 * code (ELF) | zeros up to payload_offset | weights | description (JSON) | trailer */
typedef struct tilewright_trailer {
  char magic[8];
  uint32_t format_version;
  uint32_t code_id; /* also compiled into the code: tells whether both belong together */
  uint64_t payload_offset;
  uint64_t payload_bytes;
  uint64_t description_offset;
  uint64_t description_bytes;
  uint64_t file_bytes;
  uint32_t code_crc32; /* of everything before payload_offset */
  uint32_t payload_crc32;
  uint32_t description_crc32;
  uint32_t trailer_crc32; /* of the fields above */
} tilewright_trailer;

/* The one symbol that a module exports. Later versions only append fields; size_bytes tells. */
typedef struct tilewright_api {
  uint32_t abi_version;
  uint32_t size_bytes;
  const char *(*error)(void);
  void *(*open)(const char *path, uint32_t flags);
  int (*close)(void *model);
  const char *(*describe)(void *model);
  uint32_t (*num_inputs)(void *model);
  uint32_t (*num_outputs)(void *model);
  const tilewright_tensor *(*input)(void *model, uint32_t index);
  const tilewright_tensor *(*output)(void *model, uint32_t index);
  tilewright_context *(*context_create)(void *model, int threads);
  int (*context_destroy)(tilewright_context *context);
  int (*context_threads)(tilewright_context *context);
  int (*run)(tilewright_context *context, const void *const *inputs, void *const *outputs);
  /* For profiles: seconds takes 1 + num_calls readings of a clock, the first before any call. */
  uint32_t (*num_calls)(void *model);
  int (*run_timed)(tilewright_context *context, const void *const *inputs, void *const *outputs,
                   double *seconds);
} tilewright_api;

#ifndef TILEWRIGHT_NO_LOADER

#if !defined(TILEWRIGHT_STATIC)
#include <dlfcn.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(TILEWRIGHT_STATIC)
extern const tilewright_api tilewright_linked_api __asm__(TILEWRIGHT_API_SYMBOL);
#endif

#if defined(__GNUC__)
#define TILEWRIGHT_FUNCTION static inline __attribute__((unused))
#else
#define TILEWRIGHT_FUNCTION static inline
#endif

struct tilewright_module {
  void *library;
  const tilewright_api *api;
  void *model;
};

#endif /* TILEWRIGHT_NO_LOADER */

/* CRC-32 (IEEE 802.3), eight bytes at a time; start with crc = 0. */
static inline uint32_t tilewright_crc32(uint32_t crc, const void *data, uint64_t size) {
  uint32_t table[8][256];
  const unsigned char *p = (const unsigned char *)data;
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (0xEDB88320u & (0u - (value & 1u)));
    table[0][i] = value;
  }
  for (int k = 1; k < 8; ++k)
    for (uint32_t i = 0; i < 256; ++i)
      table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 255u];
  crc = ~crc;
  for (; size >= 8; size -= 8, p += 8) {
    uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                          (uint32_t)p[3] << 24);
    crc = table[7][low & 255u] ^ table[6][(low >> 8) & 255u] ^ table[5][(low >> 16) & 255u] ^
          table[4][low >> 24] ^ table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
  }
  for (; size; --size, ++p) crc = (crc >> 8) ^ table[0][(crc ^ *p) & 255u];
  return ~crc;
}

#ifndef TILEWRIGHT_NO_LOADER

TILEWRIGHT_FUNCTION char *tilewright_error_buffer(void) {
#ifdef __cplusplus
  static thread_local char text[1024];
#else
  static _Thread_local char text[1024];
#endif
  return text;
}

/* Text of the last failure in this thread; "" if there was none. */
TILEWRIGHT_FUNCTION const char *tilewright_error(void) { return tilewright_error_buffer(); }

TILEWRIGHT_FUNCTION int tilewright_fail(const char *path, const char *text) {
  snprintf(tilewright_error_buffer(), 1024, "%s%s%s", path ? path : "", path ? ": " : "", text);
  return -1;
}

/* CRC-32 of `size` bytes of the file from `offset` on; wrong if they cannot be read. */
TILEWRIGHT_FUNCTION uint32_t tilewright_file_crc32(FILE *file, uint64_t offset, uint64_t size) {
  char buffer[32768];
  uint32_t crc = 0;
  if (fseek(file, (long)offset, SEEK_SET) != 0) return ~crc;
  while (size > 0) {
    size_t wanted = size < sizeof buffer ? (size_t)size : sizeof buffer;
    if (fread(buffer, 1, wanted, file) != wanted) return ~crc;
    crc = tilewright_crc32(crc, buffer, wanted);
    size -= wanted;
  }
  return crc;
}

/* Compare the machine that an ELF file names with the one that this program was compiled for. */
TILEWRIGHT_FUNCTION int tilewright_is_for_this_machine(FILE *file) {
  unsigned char head[20];
#if defined(__x86_64__)
  const unsigned machine = 62;
#elif defined(__aarch64__)
  const unsigned machine = 183;
#elif defined(__arm__)
  const unsigned machine = 40;
#else
  const unsigned machine = 0;
#endif
  if (fseek(file, 0, SEEK_SET) != 0 || fread(head, 1, sizeof head, file) != sizeof head) return 0;
  return machine == 0 || (head[18] | (unsigned)head[19] << 8) == machine;
}

/* Check the file before dlopen sees it: a damaged ELF file can crash the dynamic linker. */
TILEWRIGHT_FUNCTION const char *tilewright_check_file(FILE *file, uint32_t *code_id) {
  tilewright_trailer trailer;
  long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
  if (size < (long)sizeof trailer || fseek(file, size - (long)sizeof trailer, SEEK_SET) != 0 ||
      fread(&trailer, 1, sizeof trailer, file) != sizeof trailer ||
      memcmp(trailer.magic, TILEWRIGHT_MAGIC, sizeof trailer.magic) != 0)
    return "not a tilewright module, or cut short: the trailer is missing";
  if (trailer.trailer_crc32 !=
      tilewright_crc32(0, &trailer, offsetof(tilewright_trailer, trailer_crc32)))
    return "damaged: the checksum of the trailer is wrong";
  if (trailer.format_version != TILEWRIGHT_FORMAT_VERSION)
    return "made by another version of tilewright: its file format is not known here";
  if (trailer.file_bytes != (uint64_t)size)
    return "damaged: the file has not the size that its trailer states";
  if (tilewright_file_crc32(file, 0, trailer.payload_offset) != trailer.code_crc32)
    return "damaged: the checksum of the code is wrong";
  if (tilewright_file_crc32(file, trailer.description_offset, trailer.description_bytes) !=
      trailer.description_crc32)
    return "damaged: the checksum of the description is wrong";
  /* dlopen would say that there is no such file. Weights of a static module have no code. */
  if (trailer.payload_offset > 0 && !tilewright_is_for_this_machine(file))
    return "built for another kind of processor; compile the model for this one";
  *code_id = trailer.code_id;
  return NULL;
}

/* Spell the path with 1 to 256 times "./" before the file name, depending on the code. dlopen takes
 * a file for loaded already if the spelling is the same, even if the file was replaced since; and
 * it would search the library path for a name without a slash. */
TILEWRIGHT_FUNCTION char *tilewright_spell(const char *path, uint32_t code_id) {
  const char *slash = strrchr(path, '/');
  size_t folder = slash ? (size_t)(slash - path) + 1 : 0;
  size_t dots = 2 * (1 + (size_t)(code_id % 256));
  char *spelled = (char *)malloc(strlen(path) + dots + 1);
  if (!spelled) return NULL;
  memcpy(spelled, path, folder);
  for (size_t i = 0; i < dots; i += 2) memcpy(spelled + folder + i, "./", 2);
  strcpy(spelled + folder + dots, path + folder);
  return spelled;
}

TILEWRIGHT_FUNCTION void *tilewright_load(const char *path, const tilewright_api **api) {
#if defined(TILEWRIGHT_STATIC)
  (void)path;
  *api = &tilewright_linked_api;
  return NULL;
#else
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  *api = library ? (const tilewright_api *)dlsym(library, TILEWRIGHT_API_SYMBOL) : NULL;
  return library;
#endif
}

TILEWRIGHT_FUNCTION const char *tilewright_load_error(void) {
#if defined(TILEWRIGHT_STATIC)
  return "";
#else
  return dlerror();
#endif
}

TILEWRIGHT_FUNCTION void tilewright_unload(void *library) {
#if !defined(TILEWRIGHT_STATIC)
  if (library) dlclose(library);
#else
  (void)library;
#endif
}

/* Load a module. NULL if the file is damaged, or needs a CPU feature that is missing here. */
TILEWRIGHT_FUNCTION tilewright_module *tilewright_open(const char *path, uint32_t flags) {
  tilewright_module *module = (tilewright_module *)calloc(1, sizeof *module);
  char *spelled = NULL;
  uint32_t code_id = 0;
  FILE *file = fopen(path, "rb");
  const char *problem = file ? tilewright_check_file(file, &code_id) : "cannot open the file";
  if (file) fclose(file);
  if (!problem && (!module || !(spelled = tilewright_spell(path, code_id))))
    problem = "out of memory";
  if (!problem) {
    module->library = tilewright_load(spelled, &module->api);
    if (!module->api)
      problem = tilewright_load_error();
    else if (module->api->abi_version != TILEWRIGHT_ABI_VERSION)
      problem = "made for another version of tilewright.h";
    else if (!(module->model = module->api->open(spelled, flags)))
      problem = module->api->error();
  }
  free(spelled);
  if (!problem) return module;
  tilewright_fail(path, problem);
  if (module) tilewright_unload(module->library);
  free(module);
  return NULL;
}

TILEWRIGHT_FUNCTION int tilewright_report(const tilewright_module *module, int status) {
  return status ? tilewright_fail(NULL, module->api->error()) : 0;
}

/* Unload. Fails while a context of the module exists. */
TILEWRIGHT_FUNCTION int tilewright_close(tilewright_module *module) {
  if (tilewright_report(module, module->api->close(module->model))) return -1;
  tilewright_unload(module->library);
  free(module);
  return 0;
}

/* The description as JSON: names, shapes, target, CPU features, versions, digest of the model. */
TILEWRIGHT_FUNCTION const char *tilewright_describe(const tilewright_module *module) {
  return module->api->describe(module->model);
}

TILEWRIGHT_FUNCTION uint32_t tilewright_num_inputs(const tilewright_module *module) {
  return module->api->num_inputs(module->model);
}

TILEWRIGHT_FUNCTION uint32_t tilewright_num_outputs(const tilewright_module *module) {
  return module->api->num_outputs(module->model);
}

/* Input number `index`, or NULL if there is none. */
TILEWRIGHT_FUNCTION const tilewright_tensor *tilewright_input(const tilewright_module *module,
                                                              uint32_t index) {
  return module->api->input(module->model, index);
}

TILEWRIGHT_FUNCTION const tilewright_tensor *tilewright_output(const tilewright_module *module,
                                                               uint32_t index) {
  return module->api->output(module->model, index);
}

/* Make the working memory and threads for running. threads = 0: one per usable processor. */
TILEWRIGHT_FUNCTION tilewright_context *tilewright_context_create(const tilewright_module *module,
                                                                  int threads) {
  tilewright_context *context = module->api->context_create(module->model, threads);
  tilewright_report(module, context == NULL);
  return context;
}

TILEWRIGHT_FUNCTION int tilewright_context_destroy(const tilewright_module *module,
                                                   tilewright_context *context) {
  return tilewright_report(module, module->api->context_destroy(context));
}

/* Run once. inputs and outputs point to the caller's buffers, in the order of the description. */
TILEWRIGHT_FUNCTION int tilewright_run(const tilewright_module *module,
                                       tilewright_context *context, const void *const *inputs,
                                       void *const *outputs) {
  return tilewright_report(module, module->api->run(context, inputs, outputs));
}

#endif /* TILEWRIGHT_NO_LOADER */

#ifdef __cplusplus
}
#endif

#endif /* TILEWRIGHT_H */
