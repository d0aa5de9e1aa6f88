// The content of persistent dirty bitmaps: tables and the clusters they name (qcow2.md 7.1).
#pragma once

#include <cstdint>
#include <vector>

#include "bitmap/dirty_bitmap.h"
#include "format/qcow2/bitmap_directory.h"
#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// What the bitmaps of one image may take, which bounds what a hostile image can make us read and
/// hold.
struct BitmapBudget {
  /// In memory they take 16 bytes per 32768 bits and, where they are mixed, a byte per 8 bits.
  std::uint64_t bits = DirtyBitmap::max_bits;
  /// Each stored byte belongs to one bitmap, so that all together are no longer than the file.
  std::uint64_t stored_bytes = 0;
};

/// Entries of the table of a bitmap with so many bits.
std::uint64_t bitmap_table_entries(const DirtyBitmap& bits, const Header& header);

/// The bits of `entry`, which is not in use. Throws Error(EINVAL) if its table breaks a rule of the
/// format, EFBIG beyond the budget, from which it takes what it needs.
Task<DirtyBitmap> read_bitmap_data(Child& file, const Header& header, const BitmapEntry& entry,
                                   BitmapBudget& budget);

/// What `entry` occupies, whole clusters: its table and what that names. Parts that cannot be made
/// out are left out.
Task<std::vector<HostRange>> bitmap_clusters(Child& file, const Header& header,
                                             const BitmapEntry& entry);

}  // namespace vise::qcow2
