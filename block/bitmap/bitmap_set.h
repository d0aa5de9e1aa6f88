// The dirty bitmaps of one node. Its requests mark those that record (graph/tracking.h); what
// people may do with them is in graph/bitmaps.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bitmap/dirty_bitmap.h"
#include "vise/task.h"

namespace vise {

/// One bitmap of a node.
struct NodeBitmap {
  std::string name;  // 1 to 1023 bytes, unique in the node; empty: a job's own
  DirtyBitmap bits;
  bool enabled = true;        // records
  bool persistent = false;    // lives in the image, see BitmapStore
  bool inconsistent = false;  // missed changes: bits (of any size) mean nothing, only removal works
  unsigned users = 0;         // jobs and exports that rely on it; others leave it alone meanwhile
};

class BitmapSet {
 public:
  static constexpr std::size_t max_name = 1023;  // bytes

  /// In order of addition.
  const std::vector<std::unique_ptr<NodeBitmap>>& bitmaps() const { return bitmaps_; }
  /// Null if there is none of that name. Nameless ones are not found.
  NodeBitmap* find(std::string_view name) const;
  /// Throws Error(EEXIST) if the name is taken. The reference is good until the bitmap is removed.
  NodeBitmap& add(NodeBitmap bitmap);
  void remove(const NodeBitmap& bitmap);

  /// What a request may have changed, which may lie beyond the sizes of the bitmaps if the node has
  /// grown to `node_size`. Never fails: a bitmap that cannot follow becomes inconsistent.
  void record(GuestRange range, std::uint64_t node_size) noexcept;

  /// Throws Error(EFBIG) if a bitmap cannot cover a node of `size` bytes.
  void check_resize(std::uint64_t size) const;
  /// The node has that size now. A bitmap that cannot follow becomes inconsistent.
  void resize(std::uint64_t size) noexcept;

 private:
  std::vector<std::unique_ptr<NodeBitmap>> bitmaps_;
};

/// A driver that keeps the persistent bitmaps of its node in the image: it fills the node's set
/// when it opens, and stores it when it closes or becomes read-only.
class BitmapStore {
 public:
  virtual ~BitmapStore() = default;
  /// Can this image hold bitmaps at all?
  virtual bool can_store_bitmaps() const = 0;
  /// Throws if another persistent bitmap like that could not be stored: Error(ENOTSUP) unless
  /// can_store_bitmaps(), else EINVAL, EFBIG or ENOSPC.
  virtual void check_storable(std::string_view name, std::uint64_t granularity) const = 0;
  /// The image forgets that bitmap, stable when it completes; a name it does not hold is fine. The
  /// node is drained and writable.
  virtual Task<void> remove_stored(std::string name) = 0;
};

}  // namespace vise
