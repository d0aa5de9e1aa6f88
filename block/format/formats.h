// The format drivers, for the driver table.
#pragma once

#include <span>
#include <string_view>

#include "vise/driver.h"

namespace vise {

extern const DriverType qcow2_driver;
extern const DriverType raw_driver;

/// The type, one that refuses to open, of a format that is known by its first bytes only. Null:
/// none.
const DriverType* probe_foreign(std::span<const std::byte> head);
/// Is that the name of such a format?
bool is_foreign_format(std::string_view name);

/// What Amendable::amend() of that format knows, without an image. Empty: nothing.
std::span<const CreateOption> amend_options_of(std::string_view format);

}  // namespace vise
