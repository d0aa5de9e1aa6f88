// A copy for an image that gets another backing image (rebase): what it shows through the old one
// and would not show through the new one becomes its own.
#pragma once

#include <functional>

#include "copy/copy.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise {

struct DifferenceRequest {
  Child* top = nullptr;          // the image; the backing image that it has open is the old one
  Child* old_backing = nullptr;  // null: none, which shows zeros
  Child* new_backing = nullptr;  // null: as above
  /// The image of the old chain that is the new backing image; null: none of them is.
  const Node* shared = nullptr;
  bool compressed = false;  // what is taken over is compressed
  /// With `compressed` and without a level: what the old chain has compressed in the same codec and
  /// cluster size is moved as it is stored.
  bool encoded = true;
  int level = 0;                                         // of compression, see WriteFlags
  CopyControl* control = nullptr;                        // may be null
  std::function<void(const CopyProgress&)> on_progress;  // now and then; may be empty
};

/// Takes over what differs, into clusters that `top` does not hold; what the layout of its file
/// becomes does not depend on threads. `top` is not flushed. Errors of reading and writing name the
/// offset.
Task<void> copy_differences(DifferenceRequest request);

}  // namespace vise
