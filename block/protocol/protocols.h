// The protocol drivers, for the driver table.
#pragma once

#include <string>
#include <string_view>

#include "vise/driver.h"

namespace vise {

extern const DriverType file_driver;
extern const DriverType host_device_driver;
extern const DriverType null_co_driver;
extern const DriverType null_aio_driver;

/// The driver for a file of that name: "host_device" for block and character devices, else "file".
std::string_view protocol_for_path(const std::string& path);

}  // namespace vise
