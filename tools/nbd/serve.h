// vise-nbd as a server.
#pragma once

#include "tools/common/output.h"
#include "tools/nbd/options.h"

namespace vise::tools {

/// Serves until told to end; gives the exit status. Throws Error if it cannot start.
int serve_image(const Program& program, const NbdArguments& arguments);

}  // namespace vise::tools
