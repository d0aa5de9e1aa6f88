// Stopping requests at events, for tests. Found by dynamic_cast from a node's Driver.
#pragma once

#include <string>
#include <string_view>

#include "vise/task.h"

namespace vise {

/// What blkdebug offers beside its rules. A tag may name any number of breakpoints and requests.
class Breakpoints {
 public:
  virtual ~Breakpoints() = default;

  /// The next request that reaches the event of that name ("l2_load") waits there under the name
  /// `tag`; once. Throws Error(EINVAL) if there is no such event.
  virtual void add_breakpoint(std::string_view event, std::string tag) = 0;
  /// Takes away all breakpoints of that tag and resumes its requests. Throws Error(ENOENT) if
  /// there was no breakpoint.
  virtual void remove_breakpoint(std::string_view tag) = 0;
  /// Lets the request go on that came last to wait under `tag`. Throws Error(ENOENT) if there is
  /// none.
  virtual void resume(std::string_view tag) = 0;
  /// Returns once a request waits under `tag`.
  virtual Task<void> wait_suspended(std::string_view tag) = 0;
};

}  // namespace vise
