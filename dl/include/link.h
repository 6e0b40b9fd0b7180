/* With this folder among a compiler's -I, sources that include <link.h> get dl_iterate_phdr and its like; see dl_ext.h. */
#include "dl_ext.h"
