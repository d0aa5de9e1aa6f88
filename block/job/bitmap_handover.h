// The dirty bitmap that a backup works by: what is written meanwhile goes to a second one, and the
// end of the job decides what becomes of both.
#pragma once

#include <memory>
#include <string>

#include "bitmap/bitmap_set.h"
#include "vise/graph.h"

namespace vise {

class BitmapHandover {
 public:
  /// Throws Error(ENOENT / EBUSY / EINVAL) if the bitmap cannot be used.
  BitmapHandover(Node& node, const std::string& name);
  BitmapHandover(const BitmapHandover&) = delete;
  ~BitmapHandover();  // without end(): as it was, with what was written meanwhile added

  /// What was dirty at the start.
  const DirtyBitmap& bits() const { return bitmap_.bits; }

  /// keep: what was dirty, and what was written meanwhile. written: only the latter. rest: that and
  /// `uncopied`.
  enum class Outcome { keep, written, rest };
  void end(Outcome outcome, const DirtyBitmap& uncopied);

 private:
  const std::shared_ptr<Node> node_;
  NodeBitmap& bitmap_;
  const bool was_enabled_;
  NodeBitmap* successor_;  // null after the end
};

}  // namespace vise
