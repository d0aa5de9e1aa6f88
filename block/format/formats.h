// The format drivers, for the driver table.
#pragma once

#include "vise/driver.h"

namespace vise {

extern const DriverType qcow2_driver;
extern const DriverType raw_driver;

}  // namespace vise
