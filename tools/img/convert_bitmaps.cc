#include "tools/img/convert_bitmaps.h"

#include <fmt/format.h>

#include <cerrno>

#include "graph/bitmaps.h"
#include "vise/error.h"

namespace vise::tools {

void require_bitmap_support(const Node& node) {
  const auto* store = dynamic_cast<const BitmapStore*>(&node.driver());
  if (store != nullptr && store->can_store_bitmaps()) return;
  throw Error(ENOTSUP, fmt::format("{}: Format '{}' cannot store bitmaps (--bitmaps)",
                                   node.filename(), node.type().name));
}

void check_bitmaps(Node& source, BrokenBitmaps broken) {
  require_bitmap_support(source);
  if (broken == BrokenBitmaps::skip) return;
  for (const auto& bitmap : bitmaps_of(source).bitmaps()) {
    if (!bitmap->persistent || !bitmap->inconsistent) continue;
    throw Error(EINVAL,
                fmt::format("Bitmap '{}' is inconsistent and cannot be taken over", bitmap->name))
        .with_hint("Leave it out with --skip-broken-bitmaps, or remove it with 'bitmap --remove'");
  }
}

void check_bitmap_target(Node& source, Node& target) {
  require_bitmap_support(target);
  const BitmapSet& taken = bitmaps_of(target);
  for (const auto& bitmap : bitmaps_of(source).bitmaps()) {
    if (!bitmap->persistent || bitmap->inconsistent) continue;
    if (taken.find(bitmap->name) != nullptr) {
      throw Error(EEXIST, fmt::format("{}: There is a bitmap '{}' already", target.filename(),
                                      bitmap->name));
    }
    if (bitmap->bits.size() == target.size()) continue;
    throw Error(EINVAL,
                fmt::format("{}: Bitmap '{}' is of a disk of {} bytes, and this one has {}",
                            target.filename(), bitmap->name, bitmap->bits.size(), target.size()));
  }
}

void copy_bitmaps(const Program& program, Node& source, Node& target) {
  for (const auto& bitmap : bitmaps_of(source).bitmaps()) {
    if (!bitmap->persistent) continue;
    if (bitmap->inconsistent) {
      print_warning(program, fmt::format("Bitmap '{}' is inconsistent and left out", bitmap->name));
      continue;
    }
    add_bitmap(target, {.name = bitmap->name,
                        .granularity = bitmap->bits.granularity(),
                        .persistent = true,
                        .enabled = bitmap->enabled});
    merge_bitmap(target, bitmap->name, *bitmap);
  }
}

}  // namespace vise::tools
