#include "job/bitmap_handover.h"

#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "graph/bitmaps.h"
#include "vise/error.h"

namespace vise {

namespace {

NodeBitmap& usable(Node& node, const std::string& name) {
  NodeBitmap& bitmap = get_bitmap(node, name);
  if (bitmap.users > 0) {
    throw Error(EBUSY, fmt::format("Bitmap '{}' is in use by a job or an export", name));
  }
  if (bitmap.inconsistent) {
    throw Error(EINVAL, fmt::format("Bitmap '{}' is inconsistent and cannot be used", name));
  }
  if (bitmap.persistent && node.read_only()) {
    throw Error(EROFS, fmt::format("Bitmap '{}' cannot be changed: node '{}' is read-only", name,
                                   node.name()));
  }
  return bitmap;
}

}  // namespace

BitmapHandover::BitmapHandover(Node& node, const std::string& name)
    : node_(node.shared_from_this()), bitmap_(usable(node, name)), was_enabled_(bitmap_.enabled) {
  NodeBitmap successor{.name = {}, .bits = DirtyBitmap(node.size(), bitmap_.bits.granularity())};
  successor.enabled = was_enabled_;
  successor.users = 1;
  successor_ = &bitmaps_of(node).add(std::move(successor));
  bitmap_.enabled = false;
  ++bitmap_.users;
}

BitmapHandover::~BitmapHandover() {
  if (successor_ != nullptr) end(Outcome::keep, bitmap_.bits);
}

void BitmapHandover::end(Outcome outcome, const DirtyBitmap& uncopied) {
  switch (outcome) {
    case Outcome::keep:
      bitmap_.bits.merge(successor_->bits);
      break;
    case Outcome::rest:
      successor_->bits.merge(uncopied);
      bitmap_.bits = std::move(successor_->bits);
      break;
    case Outcome::written:
      bitmap_.bits = std::move(successor_->bits);
      break;
  }
  bitmap_.enabled = was_enabled_;
  --bitmap_.users;
  bitmaps_of(*node_).remove(*std::exchange(successor_, nullptr));
}

}  // namespace vise
