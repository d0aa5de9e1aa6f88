// The directory of persistent dirty bitmaps (qcow2.md 7.1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/task.h"
#include "vise/types.h"
#include "vise/value.h"

namespace vise::qcow2 {

/// Bytes of data that the table of one bitmap names at most, whole clusters.
inline constexpr std::uint64_t max_bitmap_data = 512u << 20;

struct BitmapEntry {
  HostRange table;                 // 8 bytes per cluster of bitmap data
  bool in_use = false;             // was not closed cleanly: its data means nothing
  bool automatic = false;          // records writes
  unsigned granularity_bits = 16;  // one bit per 1 << granularity_bits guest bytes
  std::string name;                // 1 to 1023 bytes, unique

  std::uint64_t granularity() const { return std::uint64_t{1} << granularity_bits; }
  /// As a Qcow2BitmapInfo dictionary.
  Value info() const;
};

/// `bytes` is the directory that `header.bitmaps` names. Throws Error(EINVAL) if it breaks any rule
/// of the format.
std::vector<BitmapEntry> decode_bitmap_directory(std::span<const std::byte> bytes,
                                                 const Header& header);

/// The opposite: a directory that decode_bitmap_directory() takes apart into `entries`.
std::vector<std::byte> encode_bitmap_directory(std::span<const BitmapEntry> entries);

/// Bytes of an entry in the directory.
std::uint64_t bitmap_entry_size(std::size_t name_length);

/// Empty if the image has no bitmaps. Throws Error(EINVAL) for a damaged directory.
Task<std::vector<BitmapEntry>> read_bitmap_directory(Child& file, const Header& header);

/// The cluster of bitmap data that a table entry names; an empty range if the entry stands for
/// constant bits. Throws Error(EINVAL) for reserved bits and unaligned offsets.
HostRange decode_bitmap_table_entry(std::uint64_t entry, const Header& header);

}  // namespace vise::qcow2
