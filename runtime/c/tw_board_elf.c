/* tw_board_elf.c - load a shared object from memory, where a static program has no dlopen.
 *
 * The object needs nothing from other libraries but the functions in IMPORTS. Relocations are those
 * of "ELF for the Arm 64-bit Architecture" (AAELF64), of AAELF32, and of the x86-64 psABI.
 */
#include <elf.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tw_board.h"

#if defined(__LP64__)
typedef Elf64_Ehdr header;
typedef Elf64_Phdr segment;
typedef Elf64_Shdr section;
typedef Elf64_Sym symbol;
#define SYMBOL_OF ELF64_R_SYM
#define TYPE_OF ELF64_R_TYPE
#else
typedef Elf32_Ehdr header;
typedef Elf32_Phdr segment;
typedef Elf32_Shdr section;
typedef Elf32_Sym symbol;
#define SYMBOL_OF ELF32_R_SYM
#define TYPE_OF ELF32_R_TYPE
#endif

#if defined(__aarch64__)
typedef Elf64_Rela relocation;
enum { MACHINE = EM_AARCH64, ABSOLUTE = 257, GLOBAL = 1025, JUMP = 1026, RELATIVE = 1027 };
#elif defined(__x86_64__)
typedef Elf64_Rela relocation;
enum { MACHINE = EM_X86_64, ABSOLUTE = 1, GLOBAL = 6, JUMP = 7, RELATIVE = 8 };
#elif defined(__arm__)
typedef Elf32_Rel relocation; /* the addend is what lies at the address */
enum { MACHINE = EM_ARM, ABSOLUTE = 2, GLOBAL = 21, JUMP = 22, RELATIVE = 23 };
#define ADDEND_IN_PLACE
#endif

#if defined(__arm__)
/* The run-time ABI of the 32-bit Arm architecture, 4.3.4. */
void __aeabi_memcpy(void *to, const void *from, size_t size) { memcpy(to, from, size); }
void __aeabi_memset(void *to, size_t size, int value) { memset(to, value, size); }
void __aeabi_memclr(void *to, size_t size) { memset(to, 0, size); }
#endif

#define IMPORT(name) {#name, (void *)(name)}
static const struct import {
  const char *name;
  void *address;
} IMPORTS[] = {
    IMPORT(memset), IMPORT(memcpy), IMPORT(memmove), IMPORT(memcmp), IMPORT(expf),
    IMPORT(logf),   IMPORT(powf),   IMPORT(tanhf),   IMPORT(erff),   IMPORT(sinf),
    IMPORT(cosf),   IMPORT(tanf),   IMPORT(asinf),   IMPORT(acosf),  IMPORT(atanf),
    IMPORT(atan2f), IMPORT(floorf), IMPORT(ceilf),   IMPORT(roundf), IMPORT(rintf),
    IMPORT(truncf), IMPORT(fmodf),  IMPORT(exp),     IMPORT(log),    IMPORT(pow),
    IMPORT(tanh),   IMPORT(erf),    IMPORT(floor),   IMPORT(ceil),   IMPORT(round),
    IMPORT(fmod),   IMPORT(nearbyintf),
#if defined(__arm__)
    {"__aeabi_memcpy4", (void *)memcpy}, {"__aeabi_memcpy8", (void *)memcpy},
    {"__aeabi_memset4", (void *)__aeabi_memset}, {"__aeabi_memset8", (void *)__aeabi_memset},
    {"__aeabi_memclr4", (void *)__aeabi_memclr}, {"__aeabi_memclr8", (void *)__aeabi_memclr},
    IMPORT(__aeabi_memcpy), IMPORT(__aeabi_memset), IMPORT(__aeabi_memclr),
#endif
};

static void *import(const char *name) {
  for (size_t i = 0; i < sizeof IMPORTS / sizeof IMPORTS[0]; ++i)
    if (strcmp(IMPORTS[i].name, name) == 0) return IMPORTS[i].address;
  return NULL;
}

static const section *sections(const char *file) {
  return (const section *)(file + ((const header *)file)->e_shoff);
}

/* Copy what is to be in memory; returns the address of byte 0 of the file's address space. */
static char *map_segments(const char *file, size_t size, size_t *span) {
  const header *head = (const header *)file;
  const segment *segments = (const segment *)(file + head->e_phoff);
  *span = 0;
  for (int i = 0; i < head->e_phnum; ++i) {
    const segment *s = &segments[i];
    if (s->p_type != PT_LOAD) continue;
    if (s->p_offset + s->p_filesz > size) return NULL;
    if (s->p_vaddr + s->p_memsz > *span) *span = s->p_vaddr + s->p_memsz;
  }
  char *base =
      mmap(NULL, *span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return NULL;
  for (int i = 0; i < head->e_phnum; ++i) {
    const segment *s = &segments[i];
    if (s->p_type == PT_LOAD) memcpy(base + s->p_vaddr, file + s->p_offset, s->p_filesz);
  }
  return base;
}

static const char *apply(const char *file, char *base, const section *table) {
  static char text[160];
  const section *symbols = sections(file) + table->sh_link;
  const char *names = file + (sections(file) + symbols->sh_link)->sh_offset;
  const relocation *all = (const relocation *)(file + table->sh_offset);
  for (size_t i = 0; i < table->sh_size / sizeof *all; ++i) {
    const relocation *r = &all[i];
    char **place = (char **)(base + r->r_offset);
    const symbol *s = (const symbol *)(file + symbols->sh_offset) + SYMBOL_OF(r->r_info);
    char *value = base;
    if (TYPE_OF(r->r_info) != RELATIVE) {
      value = s->st_shndx ? base + s->st_value : import(names + s->st_name);
      if (!value && ELF64_ST_BIND(s->st_info) != STB_WEAK) {
        snprintf(text, sizeof text, "it needs the function '%s', which the runner lacks",
                 names + s->st_name);
        return text;
      }
    }
    switch (TYPE_OF(r->r_info)) {
#if defined(ADDEND_IN_PLACE)
      case ABSOLUTE:
      case RELATIVE:
        *place = value + (size_t)*place;
        break;
      case GLOBAL:
      case JUMP:
        *place = value;
        break;
#else
      case ABSOLUTE:
      case GLOBAL:
      case JUMP:
      case RELATIVE:
        *place = value + r->r_addend;
        break;
#endif
      case 0:
        break;
      default:
        snprintf(text, sizeof text, "relocation %u is not known to the runner",
                 (unsigned)TYPE_OF(r->r_info));
        return text;
    }
  }
  return NULL;
}

static void protect(const char *file, char *base) {
  const header *head = (const header *)file;
  const segment *segments = (const segment *)(file + head->e_phoff);
  for (int i = 0; i < head->e_phnum; ++i) {
    const segment *s = &segments[i];
    if (s->p_type != PT_LOAD || !(s->p_flags & PF_X)) continue;
    size_t page = 4096 - 1;
    char *first = (char *)((size_t)(base + s->p_vaddr) & ~page);
    size_t length = (size_t)(base + s->p_vaddr + s->p_memsz - first);
    __builtin___clear_cache(first, first + length);
    mprotect(first, length, PROT_READ | PROT_EXEC | (s->p_flags & PF_W ? PROT_WRITE : 0));
  }
}

const char *tw_elf_load(const char *file, size_t size, tw_elf *loaded) {
  const header *head = (const header *)file;
  if (size < sizeof *head || memcmp(head->e_ident, ELFMAG, SELFMAG) != 0 ||
      head->e_machine != MACHINE || head->e_shoff + head->e_shnum * sizeof(section) > size)
    return "it is no shared object for this processor";
  loaded->file = file;
  loaded->base = map_segments(file, size, &loaded->span);
  if (!loaded->base) return "it cannot be mapped";
  for (int i = 0; i < head->e_shnum; ++i) {
    const section *s = sections(file) + i;
    if ((s->sh_type != SHT_RELA && s->sh_type != SHT_REL) || !(s->sh_flags & SHF_ALLOC)) continue;
    const char *problem = apply(file, loaded->base, s);
    if (problem) return problem;
  }
  protect(file, loaded->base);
  return NULL;
}

void *tw_elf_symbol(const tw_elf *loaded, const char *name) {
  const header *head = (const header *)loaded->file;
  for (int i = 0; i < head->e_shnum; ++i) {
    const section *s = sections(loaded->file) + i;
    if (s->sh_type != SHT_DYNSYM) continue;
    const char *names = loaded->file + (sections(loaded->file) + s->sh_link)->sh_offset;
    const symbol *all = (const symbol *)(loaded->file + s->sh_offset);
    for (size_t k = 0; k < s->sh_size / sizeof *all; ++k)
      if (all[k].st_shndx && strcmp(names + all[k].st_name, name) == 0)
        return loaded->base + all[k].st_value;
  }
  return NULL;
}
