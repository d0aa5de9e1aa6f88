#include "util/heap.h"

#include <malloc.h>

namespace vise {

void trim_heap() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace vise
