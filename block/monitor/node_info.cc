#include "monitor/node_info.h"

#include <ranges>
#include <utility>

#include "bitmap/bitmap_set.h"
#include "graph/image_info.h"
#include "graph/tracking.h"
#include "vise/child.h"

namespace vise {

namespace {

// The layer below in a chain: the backing image, or what a filter shows. Null: there is none.
Node* next_layer(const Node& node) {
  const Child* below = node.filtered_child();
  if (below == nullptr) below = node.backing_child();
  return below != nullptr ? &below->node() : nullptr;
}

// A filter has no header of its own; what it shows is told of the node below it, which is part of
// the chain.
Task<Value> image_with_chain(Node& node, Chain chain) {
  Value info = co_await node_image_info(node);
  if (node.type().kind == DriverKind::filter) {
    for (const auto* name : {"backing-filename", "full-backing-filename", "backing-filename-format",
                             "format-specific", "snapshots"}) {
      info.as_dict().erase(name);
    }
  }
  Node* const next = next_layer(node);
  if (chain == Chain::top_only || next == nullptr) co_return info;
  Value below = co_await image_with_chain(*next, chain);
  info.as_dict().set("backing-image", std::move(below));
  co_return info;
}

qapi::BlockdevDetectZeroesOptions detect_zeroes(const Node& node) {
  using Options = qapi::BlockdevDetectZeroesOptions;
  switch (node.options().detect_zeroes) {
    case DetectZeroes::on:
      return Options::on;
    case DetectZeroes::unmap:
      return Options::unmap;
    case DetectZeroes::off:
      break;
  }
  return Options::off;
}

}  // namespace

std::vector<qapi::BlockDirtyInfo> bitmap_infos(Node& node) {
  std::vector<qapi::BlockDirtyInfo> result;
  const BitmapSet* set = node.tracking().bitmaps.get();
  if (set == nullptr) return result;
  for (const auto& bitmap : std::views::reverse(set->bitmaps())) {
    qapi::BlockDirtyInfo info;
    if (!bitmap->name.empty()) info.name = bitmap->name;
    if (!bitmap->inconsistent) info.count = static_cast<std::int64_t>(bitmap->bits.dirty_bytes());
    info.granularity = static_cast<std::uint32_t>(bitmap->bits.granularity());
    info.recording = bitmap->enabled && !bitmap->inconsistent;
    info.busy = bitmap->users > 0;
    info.persistent = bitmap->persistent;
    if (bitmap->inconsistent) info.inconsistent = true;
    result.push_back(std::move(info));
  }
  return result;
}

Task<Value> node_info(Node& node, Chain chain) {
  Value::Dict info;
  info.set("node-name", node.name());
  info.set("drv", node.type().name);
  info.set("file", node.filename());
  info.set("ro", node.read_only());
  info.set("active", true);
  if (const Child* backing = node.backing_child()) {
    info.set("backing_file", backing->node().filename());
  }
  std::int64_t depth = 0;
  if (chain == Chain::whole) {
    for (Node* layer = next_layer(node); layer != nullptr; layer = next_layer(*layer)) ++depth;
  }
  info.set("backing_file_depth", depth);
  info.set("detect_zeroes", to_value(detect_zeroes(node)));
  info.set("write_threshold", node.tracking().write_threshold);
  for (const auto* limit : {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"}) {
    info.set(limit, 0);
  }
  qapi::BlockdevCacheInfo cache;
  cache.writeback = true;
  cache.direct = node.options().cache_direct;
  cache.no_flush = node.options().cache_no_flush;
  info.set("cache", to_value(cache));
  Value image = co_await image_with_chain(node, chain);
  const Value* encrypted = image.as_dict().find("encrypted");
  info.set("encrypted", encrypted != nullptr && encrypted->as_bool());
  info.set("image", std::move(image));
  Value::List bitmaps;
  for (const qapi::BlockDirtyInfo& bitmap : bitmap_infos(node)) {
    bitmaps.push_back(to_value(bitmap));
  }
  if (!bitmaps.empty()) info.set("dirty-bitmaps", std::move(bitmaps));
  co_return info;
}

}  // namespace vise
