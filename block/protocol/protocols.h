// The protocol drivers, for the driver table.
#pragma once

#include "vise/driver.h"

namespace vise {

extern const DriverType file_driver;
extern const DriverType host_device_driver;
extern const DriverType null_co_driver;
extern const DriverType null_aio_driver;

}  // namespace vise
