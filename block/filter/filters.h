// The filter drivers, for the driver table. Those built as plugins are not in it.
#pragma once

#include "vise/driver.h"

namespace vise {

extern const DriverType blkdebug_driver;
extern const DriverType blkverify_driver;
extern const DriverType compress_driver;
extern const DriverType copy_on_read_driver;
extern const DriverType preallocate_driver;
extern const DriverType throttle_driver;

}  // namespace vise
