/* Functions that this toolchain's compiler writes as instructions, and whose code it keeps hidden in each module. Libraries of
   other compilers import them from the program. */

#include <stddef.h>

#ifndef __wasm_bulk_memory__
#error "without the instructions these functions would call themselves"
#endif

void *memcpy(void *to, const void *from, size_t size) { return __builtin_memcpy(to, from, size); }
void *memmove(void *to, const void *from, size_t size) { return __builtin_memmove(to, from, size); }
