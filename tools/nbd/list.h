// vise-nbd -L.
#pragma once

#include "tools/common/output.h"
#include "tools/nbd/options.h"

namespace vise::tools {

/// Prints what the server at the address exports; gives the exit status. Throws Error if there is
/// none.
int list_exports(const Program& program, const NbdArguments& arguments);

}  // namespace vise::tools
