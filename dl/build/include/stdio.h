/* The C library's own, with temporary files, which `dlrun cc` has and WASI's headers call missing. */
#ifndef DLRUN_STDIO_H
#define DLRUN_STDIO_H

#define tmpfile dlrun_hidden_tmpfile
#define tmpnam dlrun_hidden_tmpnam
#include_next <stdio.h>
#undef tmpfile
#undef tmpnam

#ifndef L_tmpnam
#define TMP_MAX 10000
#define L_tmpnam 20
#endif

#ifdef __cplusplus
extern "C" {
#endif
FILE *tmpfile(void);
char *tmpnam(char *);
#ifdef __cplusplus
}
#endif

#endif
