// The rules of blkdebug as a file.
#pragma once

#include <string>
#include <string_view>

#include "vise/value.h"

namespace vise {

/// The sections of a configuration file as options: {"inject-error": [{"event": …}, …],
/// "set-state": […]}, every value a string.
///
///     # a comment
///     [inject-error]
///     event = "read_aio"
///     errno = "5"
///
/// Throws Error(EINVAL) with the number of the line that does not fit.
Value::Dict parse_blkdebug_config(std::string_view text);

/// The same for a file. Throws Error naming it.
Value::Dict read_blkdebug_config(const std::string& path);

}  // namespace vise
