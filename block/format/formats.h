// The format drivers, for the driver table.
#pragma once

#include <span>
#include <string_view>

#include "vise/driver.h"

namespace vise {

extern const DriverType qcow2_driver;
extern const DriverType raw_driver;

/// What Amendable::amend() of that format knows, without an image. Empty: nothing.
std::span<const CreateOption> amend_options_of(std::string_view format);

}  // namespace vise
