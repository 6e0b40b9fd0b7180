/* dlfcn.h for what `dlrun cc` builds: all of it, over the imports of "dl_ext". */
#include "dl_ext.h"
