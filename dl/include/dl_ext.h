/*
 * The whole of dlfcn for C programs that this dynamic linker runs: what <dlfcn.h> and <link.h> declare, over the imports of the
 * namespace "dl_ext". WASIX itself has no calls for dlclose, dladdr, dlinfo, dl_iterate_phdr and RTLD_NEXT.
 *
 * Include this header instead of <dlfcn.h> and <link.h>, or give the compiler this folder with -I: then these lead here. Compile
 * dl_ext.c into every module that calls these functions, the program and each library. They are hidden: each module has its
 * own, which is how the linker knows whose code asks, for RTLD_NEXT, RTLD_DEFAULT and run paths. With -DDL_EXT_API= they are
 * exported instead, and a library that has none of its own gets the program's; all these look-ups are then the program's.
 *
 * Flags and scopes are those of ELF. dlerror is each thread's own. docs/dlfcn.md has the details.
 */
#ifndef DL_EXT_H
#define DL_EXT_H

#if defined(_DLFCN_H) || defined(_LINK_H) || defined(RTLD_LAZY)
#error "include dl_ext.h instead of <dlfcn.h> and <link.h>, and first"
#endif
/* The C library's headers, should they be included later, have other numbers. */
#define _DLFCN_H
#define _LINK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef DL_EXT_API
#define DL_EXT_API __attribute__((visibility("hidden")))
#endif

/* Flags of dlopen; the numbers are those of WASIX. One of the first two must be given. */
#define RTLD_LAZY 1
#define RTLD_NOW 2
#define RTLD_GLOBAL 4
#define RTLD_NOLOAD 8
#define RTLD_NODELETE 16
#define RTLD_DEEPBIND 32
#define RTLD_LOCAL 0

/* Handles of dlsym: what the calling module sees, and what comes behind it. */
#define RTLD_DEFAULT ((void *)0)
#define RTLD_NEXT ((void *)-1)

DL_EXT_API void *dlopen(const char *path, int flags);
DL_EXT_API void *dlsym(void *handle, const char *name);
DL_EXT_API int dlclose(void *handle);
/* The calling thread's last failure, once; the text is the thread's until its next dlerror of the same module. */
DL_EXT_API char *dlerror(void);

typedef struct {
  const char *dli_fname; /* path as the program sees it, or the base name; kept for good */
  void *dli_fbase;       /* where the module's data begins */
  const char *dli_sname; /* nearest exported symbol, or null; kept for good */
  void *dli_saddr;       /* that symbol's address: a function pointer, or data */
} Dl_info;

/* Not 0 if a module has this address. A number that may be a function pointer is taken for one; who knows better says so. */
DL_EXT_API int dladdr(const void *address, Dl_info *info);
#define DL_EXT_FUNCTION 1
#define DL_EXT_DATA 2
DL_EXT_API int dl_ext_dladdr(const void *address, Dl_info *info, int kind);

/* What dlinfo can be asked; other requests fail. */
#define RTLD_DI_LMID 1      /* Lmid_t: 0, there is one namespace */
#define RTLD_DI_LINKMAP 2   /* struct link_map *: the thread's until its next such call */
#define RTLD_DI_ORIGIN 6    /* char[]: the directory of the module, as the program sees it */
#define RTLD_DI_TLS_MODID 9 /* size_t: 0 without thread-local storage */
#define RTLD_DI_TLS_DATA 10 /* void *: the calling thread's block, or null */
typedef long Lmid_t;
#define LM_ID_BASE 0

struct link_map {
  uintptr_t l_addr; /* where the module's data begins */
  char *l_name;     /* as dli_fname */
  void *l_ld;       /* null: there is no dynamic section */
  struct link_map *l_next, *l_prev; /* null: dl_iterate_phdr walks the modules */
};

DL_EXT_API int dlinfo(void *handle, int request, void *argument);

/* Program headers as far as there is anything like them: the module's data, and its thread-local storage. */
#define ElfW(type) dl_ext_##type
typedef uint32_t dl_ext_Addr;
typedef uint16_t dl_ext_Half;
typedef struct {
  uint32_t p_type, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_flags, p_align;
} dl_ext_Phdr;
#ifndef PT_LOAD
#define PT_LOAD 1
#define PT_TLS 7
#endif

struct dl_phdr_info {
  ElfW(Addr) dlpi_addr;         /* where the module's data begins */
  const char *dlpi_name;        /* as dli_fname */
  const ElfW(Phdr) *dlpi_phdr;  /* valid during the callback */
  ElfW(Half) dlpi_phnum;
  unsigned long long dlpi_adds; /* modules loaded so far */
  unsigned long long dlpi_subs; /* how many of these are gone */
  size_t dlpi_tls_modid;        /* 0 without thread-local storage */
  void *dlpi_tls_data;          /* the calling thread's block, or null */
};

/* No lock is held during a callback: it may open and close. Modules that are there all the while are met once, in load order. */
DL_EXT_API int dl_iterate_phdr(int (*callback)(struct dl_phdr_info *info, size_t size, void *data), void *data);

/* The imports themselves. Each returns an errno of WASI; see docs/dlfcn.md. */
#define DL_EXT_IMPORT(name) __attribute__((import_module("dl_ext"), import_name(#name)))
DL_EXT_IMPORT(dlopen)
int32_t dl_ext_import_dlopen(const char *path, size_t path_size, uint32_t flags, const char *search, size_t search_size,
                             uint32_t *handle);
DL_EXT_IMPORT(dlsym)
int32_t dl_ext_import_dlsym(uint32_t handle, const char *name, size_t name_size, uintptr_t *address);
DL_EXT_IMPORT(dlclose) int32_t dl_ext_import_dlclose(uint32_t handle);
DL_EXT_IMPORT(dlerror) int32_t dl_ext_import_dlerror(char *buffer, size_t size, uint32_t *length);

struct dl_ext_address {
  uint32_t handle, base, kind, symbol, path_size, symbol_size;
};
DL_EXT_IMPORT(dladdr)
int32_t dl_ext_import_dladdr(uintptr_t address, uint32_t kind, struct dl_ext_address *record, char *text, size_t size);

struct dl_ext_module {
  uint32_t handle, flags, base, size, table, elements, tls_id, tls_data, tls_size, path_size, origin_size;
};
DL_EXT_IMPORT(module)
int32_t dl_ext_import_module(uint32_t handle, struct dl_ext_module *record, char *text, size_t size);

struct dl_ext_count {
  uint32_t written, loaded, unloaded;
};
DL_EXT_IMPORT(modules)
int32_t dl_ext_import_modules(uint32_t after, uint32_t *handles, size_t capacity, struct dl_ext_count *record);

#ifdef __cplusplus
}
#endif
#endif
