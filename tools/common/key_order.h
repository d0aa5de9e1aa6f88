// The order in which members of information are printed.
#pragma once

#include "vise/value.h"

namespace vise::tools {

/// `value` with the members of all its dictionaries in the order people know from these tools'
/// output. It carries no meaning, but outputs are compared as text. Unknown members come last, in
/// the order they have.
Value in_printing_order(Value value);

}  // namespace vise::tools
