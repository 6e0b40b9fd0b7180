/*
 * Destructors of thread-local variables. They run in their thread, last first: when it returns or calls pthread_exit, before the
 * destructors of its keys; and in the thread that ends the program, before all that is registered with atexit.
 */
#include "features.h"
#include <stdlib.h>

struct end {
  struct end *next;
  void (*function)(void *);
  void *argument;
};

static _Thread_local struct end *ends;

int __cxa_thread_atexit(void (*function)(void *), void *argument, void *dso) {
  struct end *made = malloc(sizeof *made);
  (void)dso;
  if (!made) return -1;
  made->next = ends;
  made->function = function;
  made->argument = argument;
  ends = made;
  return 0;
}
weak_alias(__cxa_thread_atexit, __cxa_thread_atexit_impl);

/* A destructor may register more. */
hidden void __run_thread_ends(void) {
  while (ends) {
    struct end first = *ends;
    free(ends);
    ends = first.next;
    first.function(first.argument);
  }
}
