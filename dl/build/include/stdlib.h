/* The C library's own, with temporary files, which `dlrun cc` has and WASI's headers call missing. */
#ifndef DLRUN_STDLIB_H
#define DLRUN_STDLIB_H

#include_next <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif
int mkstemp(char *);
int mkostemp(char *, int);
char *mkdtemp(char *);
#ifdef __cplusplus
}
#endif

#endif
