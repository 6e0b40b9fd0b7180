/*
 * dlopen, dlsym, dlclose, dlerror, dladdr, dlinfo and dl_iterate_phdr over the imports of "dl_ext"; see dl_ext.h.
 *
 * Needs of the C library: getenv, malloc, free, and the string functions.
 */
#include "dl_ext.h"

#include <stdlib.h>
#include <string.h>

enum { E_OVERFLOW = 61, MESSAGE_BYTES = 1024, TEXT_BYTES = 512, BUCKETS = 64, HANDLES_AT_ONCE = 64 };

static _Thread_local char message[MESSAGE_BYTES];
static _Thread_local const char *own_failure; /* what failed here and not in the linker */

static uint32_t number(const void *pointer) { return (uint32_t)(uintptr_t)pointer; }

static void fail(const char *text) {
  uint32_t length;
  dl_ext_import_dlerror(message, sizeof message, &length); /* an older failure gives way */
  own_failure = text;
}

/* Strings that stay: of each there is one, so their number is bounded by the names that there are. */

struct kept {
  struct kept *next;
  size_t size;
  char bytes[];
};

static struct kept *all_kept[BUCKETS];

static char *keep(const char *bytes, size_t size) {
  uint32_t hash = 2166136261u;
  for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)bytes[i]) * 16777619u;
  struct kept **bucket = &all_kept[hash % BUCKETS];
  struct kept *head = __atomic_load_n(bucket, __ATOMIC_ACQUIRE);
  for (struct kept *k = head; k; k = k->next)
    if (k->size == size && !memcmp(k->bytes, bytes, size)) return k->bytes;
  struct kept *made = malloc(sizeof *made + size + 1);
  if (!made) return 0;
  made->size = size;
  memcpy(made->bytes, bytes, size);
  made->bytes[size] = 0;
  /* Two threads may keep the same string at once: both are right. */
  made->next = head;
  while (!__atomic_compare_exchange_n(bucket, &made->next, made, 0, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
  }
  return made->bytes;
}

/* A text of the linker's, in the given buffer, or in one from malloc if it is longer. */

struct text {
  char *bytes;
  size_t size;
  char first[TEXT_BYTES];
};

static void begin(struct text *text) {
  text->bytes = text->first;
  text->size = sizeof text->first;
}

static void end(struct text *text) {
  if (text->bytes != text->first) free(text->bytes);
}

static int grow(struct text *text, size_t size) {
  end(text);
  begin(text);
  char *larger = malloc(size);
  if (!larger) return 0;
  text->bytes = larger;
  text->size = size;
  return 1;
}

static int32_t module_of(uint32_t handle, struct dl_ext_module *module, struct text *text) {
  int32_t error;
  begin(text);
  while ((error = dl_ext_import_module(handle, module, text->bytes, text->size)) == E_OVERFLOW)
    if (!grow(text, (size_t)module->path_size + module->origin_size + 2)) break;
  if (error) end(text);
  return error;
}

void *dlopen(const char *path, int flags) {
  const char *search = getenv("LD_LIBRARY_PATH");
  uint32_t handle = 0;
  own_failure = 0;
  if (dl_ext_import_dlopen(path, path ? strlen(path) : 0, (uint32_t)flags, search, search ? strlen(search) : 0, &handle))
    return 0;
  return (void *)(uintptr_t)handle;
}

void *dlsym(void *handle, const char *name) {
  uintptr_t address = 0;
  own_failure = 0;
  if (dl_ext_import_dlsym(number(handle), name, strlen(name), &address)) return 0;
  return (void *)address;
}

int dlclose(void *handle) {
  own_failure = 0;
  return dl_ext_import_dlclose(number(handle)) ? -1 : 0;
}

char *dlerror(void) {
  uint32_t length = 0;
  if (own_failure) {
    strncpy(message, own_failure, sizeof message - 1);
    own_failure = 0;
    return message;
  }
  return dl_ext_import_dlerror(message, sizeof message, &length) || !length ? 0 : message;
}

int dl_ext_dladdr(const void *address, Dl_info *info, int kind) {
  struct dl_ext_address found;
  struct text text;
  int32_t error;
  begin(&text);
  while ((error = dl_ext_import_dladdr((uintptr_t)address, (uint32_t)kind, &found, text.bytes, text.size)) == E_OVERFLOW)
    if (!grow(&text, (size_t)found.path_size + found.symbol_size + 2)) break;
  if (!error) {
    info->dli_fname = keep(text.bytes, found.path_size);
    info->dli_fbase = (void *)(uintptr_t)found.base;
    info->dli_sname = found.symbol_size ? keep(text.bytes + found.path_size + 1, found.symbol_size) : 0;
    info->dli_saddr = (void *)(uintptr_t)found.symbol;
    if (!info->dli_fname || (found.symbol_size && !info->dli_sname)) error = E_OVERFLOW;
  }
  end(&text);
  return !error;
}

int dladdr(const void *address, Dl_info *info) { return dl_ext_dladdr(address, info, 0); }

int dlinfo(void *handle, int request, void *argument) {
  static _Thread_local struct link_map map;
  struct dl_ext_module module;
  struct text text;
  int result = 0;
  own_failure = 0;
  if (handle == RTLD_DEFAULT || module_of(number(handle), &module, &text)) {
    fail("dlinfo: no module has this handle");
    return -1;
  }
  switch (request) {
    case RTLD_DI_LMID: *(Lmid_t *)argument = LM_ID_BASE; break;
    case RTLD_DI_LINKMAP:
      map.l_addr = module.base;
      map.l_name = keep(text.bytes, module.path_size);
      if (map.l_name) {
        *(struct link_map **)argument = &map;
      } else {
        fail("dlinfo: out of memory");
        result = -1;
      }
      break;
    case RTLD_DI_ORIGIN:
      if (module.origin_size) {
        memcpy(argument, text.bytes + module.path_size + 1, (size_t)module.origin_size + 1);
      } else {
        fail("dlinfo: the module is in no directory that the program sees");
        result = -1;
      }
      break;
    case RTLD_DI_TLS_MODID: *(size_t *)argument = module.tls_id; break;
    case RTLD_DI_TLS_DATA: *(void **)argument = (void *)(uintptr_t)module.tls_data; break;
    default: fail("dlinfo: this request is not supported"); result = -1;
  }
  end(&text);
  return result;
}

static int report(uint32_t handle, const struct dl_ext_count *count,
                  int (*callback)(struct dl_phdr_info *, size_t, void *), void *data) {
  struct dl_ext_module module;
  struct text text;
  if (module_of(handle, &module, &text)) return 0; /* closed meanwhile */
  const char *name = keep(text.bytes, module.path_size);
  end(&text);
  if (!name) return 0;
  ElfW(Phdr) headers[2];
  memset(headers, 0, sizeof headers);
  headers[0].p_type = PT_LOAD;
  headers[0].p_filesz = headers[0].p_memsz = module.size;
  headers[1].p_type = PT_TLS;
  headers[1].p_filesz = headers[1].p_memsz = module.tls_size;
  struct dl_phdr_info info = {
      .dlpi_addr = module.base,
      .dlpi_name = name,
      .dlpi_phdr = headers,
      .dlpi_phnum = module.tls_id ? 2 : 1,
      .dlpi_adds = count->loaded,
      .dlpi_subs = count->unloaded,
      .dlpi_tls_modid = module.tls_id,
      .dlpi_tls_data = (void *)(uintptr_t)module.tls_data,
  };
  return callback(&info, sizeof info, data);
}

int dl_iterate_phdr(int (*callback)(struct dl_phdr_info *, size_t, void *), void *data) {
  uint32_t handles[HANDLES_AT_ONCE], last = 0;
  struct dl_ext_count count;
  do {
    if (dl_ext_import_modules(last, handles, HANDLES_AT_ONCE, &count)) return 0;
    for (uint32_t i = 0; i < count.written; i++) {
      int result = report(last = handles[i], &count, callback, data);
      if (result) return result;
    }
  } while (count.written == HANDLES_AT_ONCE);
  return 0;
}
