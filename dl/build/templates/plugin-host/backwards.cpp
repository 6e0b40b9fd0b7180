#include "plugin.h"

#include <algorithm>
#include <string_view>

const char *plugin_name(void) { return "backwards"; }

void plugin_run(char *text) {
  std::string_view all(text);
  std::reverse(text, text + all.size());
}
