// Names every built-in driver. (No static initialisers: a driver that is not here does not exist.)
#include "vise/driver_table.h"

namespace vise {}  // namespace vise
