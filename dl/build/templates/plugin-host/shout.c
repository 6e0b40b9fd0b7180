#include "plugin.h"

#include <ctype.h>

const char *plugin_name(void) { return "shout"; }

void plugin_run(char *text) {
  for (; *text; text++) *text = (char)toupper((unsigned char)*text);
}
