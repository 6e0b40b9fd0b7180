/* Included before musl's exit.c: the ending thread's own destructors come before the program's. */
#pragma once
#include "libc.h"

static void no_thread_ends(void) {}
/* thread_ends.c overrides this. */
hidden void __run_thread_ends(void);
weak_alias(no_thread_ends, __run_thread_ends);

/* With parentheses it is a call; the name alone stays. */
#define __funcs_on_exit() (__run_thread_ends(), (__funcs_on_exit)())
