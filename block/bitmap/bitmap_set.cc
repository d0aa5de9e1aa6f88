#include "bitmap/bitmap_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "vise/error.h"

namespace vise {

NodeBitmap* BitmapSet::find(std::string_view name) const {
  if (name.empty()) return nullptr;
  for (const auto& bitmap : bitmaps_) {
    if (bitmap->name == name) return bitmap.get();
  }
  return nullptr;
}

NodeBitmap& BitmapSet::add(NodeBitmap bitmap) {
  if (find(bitmap.name) != nullptr) {
    throw Error(EEXIST, fmt::format("There is a bitmap '{}' already", bitmap.name));
  }
  bitmaps_.push_back(std::make_unique<NodeBitmap>(std::move(bitmap)));
  return *bitmaps_.back();
}

void BitmapSet::remove(const NodeBitmap& bitmap) {
  std::erase_if(bitmaps_, [&](const auto& held) { return held.get() == &bitmap; });
}

void BitmapSet::record(GuestRange range, std::uint64_t node_size) noexcept {
  for (const auto& bitmap : bitmaps_) {
    if (!bitmap->enabled) continue;
    if (bitmap->bits.size() < node_size) resize(node_size);
    bitmap->bits.set(range);
  }
}

void BitmapSet::check_resize(std::uint64_t size) const {
  for (const auto& bitmap : bitmaps_) {
    if (bitmap->inconsistent || bitmap->bits.can_resize(size)) continue;
    throw Error(EFBIG, fmt::format("The granularity of bitmap '{}', {}, is too fine for {} bytes",
                                   bitmap->name, bitmap->bits.granularity(), size));
  }
}

void BitmapSet::resize(std::uint64_t size) noexcept {
  for (const auto& bitmap : bitmaps_) {
    if (bitmap->inconsistent) continue;
    if (bitmap->bits.can_resize(size)) {
      bitmap->bits.resize(size);
    } else {
      bitmap->inconsistent = true;
      bitmap->enabled = false;
    }
  }
}

}  // namespace vise
