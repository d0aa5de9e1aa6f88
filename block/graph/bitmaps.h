// What programs, jobs and the monitor do with the dirty bitmaps of a node, with the rules of when
// they may. Recording itself is part of every request: graph/tracking.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "bitmap/bitmap_set.h"
#include "vise/graph.h"

namespace vise {

struct BitmapOptions {
  std::string name;                          // 1 to 1023 bytes
  std::optional<std::uint64_t> granularity;  // bytes; nothing: default_granularity()
  bool persistent = false;
  bool enabled = true;
};

/// The cluster size, but at least 4 KiB and at most 64 KiB; 64 KiB without clusters.
std::uint64_t default_granularity(const Node& node);

/// The bitmaps of the node; made when first asked for.
BitmapSet& bitmaps_of(Node& node);

/// Throws Error(ENOENT) if the node has no bitmap of that name.
NodeBitmap& get_bitmap(Node& node, std::string_view name);

/// A new bitmap, all clean. Throws Error(EINVAL) for a bad name or granularity, EEXIST, and
/// what BitmapStore::check_storable() throws. On a read-only node it lives in memory until the node
/// becomes writable.
NodeBitmap& add_bitmap(Node& node, const BitmapOptions& options);

/// Those below throw Error(ENOENT) for unknown names, EBUSY for a bitmap somebody relies on, EINVAL
/// for an inconsistent one (which remove_bitmap() alone takes), EROFS where a persistent one would
/// change on a read-only node.
Task<void> remove_bitmap(Node& node, std::string name);
/// Throws what remove_bitmap() would for the state the bitmap is in.
void check_removable(Node& node, std::string_view name);
void clear_bitmap(Node& node, std::string_view name);
void enable_bitmap(Node& node, std::string_view name);
void disable_bitmap(Node& node, std::string_view name);
/// Adds what `source` has marked. Throws Error(EINVAL) too if the disks differ in size.
void merge_bitmap(Node& node, std::string_view name, const NodeBitmap& source);

}  // namespace vise
