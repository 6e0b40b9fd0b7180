/* link.h for what `dlrun cc` builds. */
#include "dl_ext.h"
