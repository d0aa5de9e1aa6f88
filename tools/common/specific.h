// Format-specific information as text, for `info` of both programs.
#pragma once

#include <string>

#include "vise/value.h"

namespace vise::tools {

/// `specific` is {"type": …, "data": {…}} or null. Gives "Format specific information:" and a line
/// per member of data, in printing order, behind `indent` blanks; nothing if there are no members.
std::string format_specific_text(const Value& specific, unsigned indent);

}  // namespace vise::tools
