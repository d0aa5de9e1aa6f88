// The table of internal snapshots (qcow2.md 6.1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/task.h"
#include "vise/types.h"
#include "vise/value.h"

namespace vise::qcow2 {

inline constexpr std::uint32_t max_snapshot_extra = 1024;       // bytes
inline constexpr std::uint64_t max_snapshot_table = 64u << 20;  // bytes
inline constexpr std::uint32_t min_snapshot_extra_v3 = 16;      // bytes
inline constexpr std::uint64_t no_icount = UINT64_MAX;

/// One internal snapshot. Nothing here says that the L1 table lies inside the file: see check_l1().
struct Snapshot {
  HostOffset l1_offset;
  std::uint32_t l1_entries = 0;
  std::string id;             // a decimal number, usually; any bytes
  std::string name;           // any bytes
  std::uint32_t seconds = 0;  // since 1970, UTC
  std::uint32_t nanoseconds = 0;
  std::uint64_t vm_clock = 0;       // guest run time, nanoseconds
  std::uint64_t vm_state_size = 0;  // bytes
  std::uint64_t virtual_size = 0;   // bytes of the disk then
  std::uint64_t icount = no_icount;
  std::vector<std::byte> unknown_extra;  // what follows the extra data we know, kept verbatim
  std::uint64_t position = 0;            // of the entry in the table that was read, bytes

  HostRange l1_table() const { return {l1_offset, std::uint64_t{l1_entries} * 8}; }

  /// To be called before every use of the L1 table. Throws Error(EINVAL) if it is unaligned or ends
  /// beyond 2^63, EFBIG if it is too large.
  void check_l1(const Header& header) const;
  /// Checks the L1 table and reads its entries.
  Task<std::vector<std::uint64_t>> read_l1(Child& file, const Header& header) const;

  /// As a SnapshotInfo dictionary.
  Value info() const;
};

/// All internal snapshots of an image.
struct SnapshotTable {
  std::vector<Snapshot> snapshots;
  std::uint64_t length = 0;  // bytes on disk

  /// What tolerant reading put up with; all zero after strict reading but for `short_extra`.
  std::uint64_t short_extra = 0;   // version 3 entries without the disk size
  std::uint64_t excess_extra = 0;  // entries with more extra data than allowed, cut
  std::uint64_t surplus = 0;       // entries left out because of the limits or the end of the file

  enum class Mode { strict, tolerant };

  /// Strict: throws Error(EFBIG) beyond the limits, EINVAL where the table runs past the end of the
  /// file. Tolerant: cuts instead, and counts.
  static Task<SnapshotTable> read(Child& file, const Header& header, Mode mode);

  /// The same from bytes in memory: `bytes` from the start of the table to the end of the file or
  /// at least to max_snapshot_table. Nothing if more bytes are needed than there are and `complete`
  /// is not set.
  enum class Extent { complete, partial };
  static std::optional<SnapshotTable> decode(std::span<const std::byte> bytes, Extent extent,
                                             const Header& header, Mode mode);

  /// The table as it is to be written; every entry has the extra data of version 3.
  std::vector<std::byte> encode() const;
};

}  // namespace vise::qcow2
