// Work on a stretch of a node that must not meet other requests there.
#pragma once

#include <functional>

#include "vise/child.h"
#include "vise/task.h"

namespace vise {

/// Runs `work` like one serialising request of the edge for `range`, after all earlier overlapping
/// requests to its node and before all later ones. It may change how the content of the range is
/// stored, but not what readers see. Throws Error(EROFS / EPERM) without permission to do that.
Task<void> run_exclusively(Child& edge, GuestRange range, std::function<Task<void>()> work);

}  // namespace vise
