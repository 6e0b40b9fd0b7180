/* What a plug-in has. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

/* Its name, for people. */
const char *plugin_name(void);

/* Changes the text in place, which has room for as many characters as it has. */
void plugin_run(char *text);

#ifdef __cplusplus
}
#endif
