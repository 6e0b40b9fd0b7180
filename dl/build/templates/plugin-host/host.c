/* The host as a program: loads the plug-ins that its arguments name, and runs each on a text. */
#include "plugin.h"

#include <dlfcn.h>
#include <stdio.h>

int main(int count, char **arguments) {
  char text[] = "Hello from a plug-in";
  for (int i = 1; i < count; i++) {
    void *plugin = dlopen(arguments[i], RTLD_NOW | RTLD_LOCAL);
    if (!plugin) {
      fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
    const char *(*name)(void) = (const char *(*)(void))dlsym(plugin, "plugin_name");
    void (*run)(char *) = (void (*)(char *))dlsym(plugin, "plugin_run");
    if (!name || !run) {
      fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
    run(text);
    printf("%s: %s\n", name(), text);
    dlclose(plugin);
  }
  return 0;
}
