#include "graph/bitmaps.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "graph/drained.h"
#include "graph/tracking.h"
#include "vise/error.h"

namespace vise {

namespace {

enum class Use { content, flags };

void require_free(const NodeBitmap& bitmap) {
  if (bitmap.users == 0) return;
  throw Error(EBUSY, fmt::format("Bitmap '{}' is in use by a job or an export", bitmap.name));
}

void require_consistent(const NodeBitmap& bitmap) {
  if (!bitmap.inconsistent) return;
  throw Error(EINVAL, fmt::format("Bitmap '{}' is inconsistent and cannot be used", bitmap.name))
      .with_hint("The image was not closed cleanly: such a bitmap can only be removed");
}

void require_writable(const Node& node, const NodeBitmap& bitmap) {
  if (!bitmap.persistent || !node.read_only()) return;
  throw Error(EROFS, fmt::format("Bitmap '{}' cannot be changed: node '{}' is read-only",
                                 bitmap.name, node.name()));
}

NodeBitmap& changeable(Node& node, std::string_view name, Use use) {
  NodeBitmap& bitmap = get_bitmap(node, name);
  require_free(bitmap);
  require_consistent(bitmap);
  if (use == Use::content) require_writable(node, bitmap);
  return bitmap;
}

BitmapStore* store_of(const Node& node) { return dynamic_cast<BitmapStore*>(&node.driver()); }

}  // namespace

std::uint64_t default_granularity(const Node& node) {
  constexpr std::uint64_t least = 4u << 10;
  constexpr std::uint64_t most = 64u << 10;
  const std::uint64_t cluster = node.tracking().limits.cluster_size;
  return cluster == 0 ? most : std::clamp(cluster, least, most);
}

BitmapSet& bitmaps_of(Node& node) {
  std::unique_ptr<BitmapSet>& set = node.tracking().bitmaps;
  if (!set) set = std::make_unique<BitmapSet>();
  return *set;
}

NodeBitmap& get_bitmap(Node& node, std::string_view name) {
  const BitmapSet* set = node.tracking().bitmaps.get();
  NodeBitmap* bitmap = set != nullptr ? set->find(name) : nullptr;
  if (bitmap == nullptr) {
    throw Error(ENOENT, fmt::format("Node '{}' has no bitmap '{}'", node.name(), name));
  }
  return *bitmap;
}

NodeBitmap& add_bitmap(Node& node, const BitmapOptions& options) {
  if (options.name.empty() || options.name.size() > BitmapSet::max_name) {
    throw Error(EINVAL, fmt::format("A bitmap name has 1 to {} bytes, not {}", BitmapSet::max_name,
                                    options.name.size()));
  }
  BitmapSet& set = bitmaps_of(node);
  NodeBitmap bitmap{
      .name = options.name,
      .bits = DirtyBitmap(node.size(), options.granularity.value_or(default_granularity(node)))};
  bitmap.enabled = options.enabled;
  bitmap.persistent = options.persistent;
  if (options.persistent && set.find(options.name) == nullptr) {
    const BitmapStore* store = store_of(node);
    if (store == nullptr) {
      throw Error(ENOTSUP, fmt::format("Format '{}' cannot store bitmaps", node.type().name));
    }
    store->check_storable(options.name, bitmap.bits.granularity());
  }
  return set.add(std::move(bitmap));
}

void check_removable(Node& node, std::string_view name) {
  const NodeBitmap& found = get_bitmap(node, name);
  require_free(found);
  require_writable(node, found);
}

Task<void> remove_bitmap(Node& node, std::string name) {
  check_removable(node, name);
  const NodeBitmap& found = get_bitmap(node, name);
  BitmapStore* store = found.persistent ? store_of(node) : nullptr;
  if (store != nullptr) {
    const auto remove = [&] { return store->remove_stored(name); };
    co_await while_drained(node, remove);
  }
  BitmapSet& set = bitmaps_of(node);
  const NodeBitmap* left = set.find(name);
  if (left != nullptr) set.remove(*left);
}

void clear_bitmap(Node& node, std::string_view name) {
  changeable(node, name, Use::content).bits.clear_all();
}

void enable_bitmap(Node& node, std::string_view name) {
  changeable(node, name, Use::flags).enabled = true;
}

void disable_bitmap(Node& node, std::string_view name) {
  changeable(node, name, Use::flags).enabled = false;
}

void merge_bitmap(Node& node, std::string_view name, const NodeBitmap& source) {
  NodeBitmap& bitmap = changeable(node, name, Use::content);
  require_free(source);
  require_consistent(source);
  bitmap.bits.merge(source.bits);
}

}  // namespace vise
