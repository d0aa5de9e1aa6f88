// The Context that main() makes.
#include "vise/context.h"

#include "vise/driver_table.h"

namespace vise {}  // namespace vise
