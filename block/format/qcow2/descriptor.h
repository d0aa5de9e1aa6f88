// The bits of L1 and L2 entries and nothing else.
// Source: docs/qcow2.md and the qcow2 specification, "Cluster mapping".
#pragma once

#include <cstdint>

#include "format/qcow2/header.h"
#include "vise/types.h"

namespace vise::qcow2 {

/// Bit 63 of an entry: the refcount of what it points to is exactly 1, so it may be written in
/// place.
inline constexpr std::uint64_t entry_copied = std::uint64_t{1} << 63;
inline constexpr std::uint64_t entry_compressed = std::uint64_t{1} << 62;
inline constexpr std::uint64_t entry_zero = 1;
inline constexpr std::uint64_t entry_offset_mask = 0x00fffffffffffe00;
inline constexpr std::uint64_t entry_reserved_mask = 0x3f000000000001fe;

/// What the header says about the layout of entries and tables.
struct Geometry {
  explicit Geometry(const Header& header);

  unsigned cluster_bits;
  std::uint64_t cluster_size;     // bytes
  unsigned l2_entry_size;         // bytes
  unsigned l2_bits;               // log2 of the entries of an L2 table
  unsigned subclusters;           // per cluster: 32 with extended L2, else the cluster is the one
  std::uint64_t subcluster_size;  // bytes
  std::uint32_t all_subclusters;  // a mask with a bit for each
  bool zero_flag;                 // v3: entries can say "reads as zeros"
  bool extended_l2;
  bool data_file;
  /// Compressed extents must start below this host offset.
  std::uint64_t compressed_limit;

  std::uint64_t cluster_of(GuestOffset offset) const { return offset.bytes() >> cluster_bits; }
  GuestOffset guest_offset(std::uint64_t cluster) const {
    return GuestOffset(cluster << cluster_bits);
  }
  std::uint64_t offset_in_cluster(std::uint64_t offset) const {
    return offset & (cluster_size - 1);
  }
  std::uint64_t l2_index(std::uint64_t cluster) const {
    return cluster & ((std::uint64_t{1} << l2_bits) - 1);
  }
  std::uint64_t l1_index(std::uint64_t cluster) const { return cluster >> l2_bits; }
};

/// One L2 entry. Without extended L2 a cluster counts as one subcluster, so that one logic serves
/// both. A subcluster with neither bit set is supplied by the backing image.
struct Descriptor {
  bool compressed = false;
  bool copied = false;
  bool has_host = false;            // space is owned at `host` (always so if compressed)
  HostOffset host;                  // cluster-aligned unless compressed
  std::uint64_t stored_length = 0;  // compressed: bytes from `host` on that may be read
  std::uint32_t allocated = 0;      // bit per subcluster: its data lies at `host`
  std::uint32_t zero = 0;           // bit per subcluster: reads as zeros

  bool operator==(const Descriptor&) const = default;

  static Descriptor unallocated() { return {}; }
  static Descriptor zeroes(const Geometry& geometry) {
    Descriptor d;
    d.zero = geometry.all_subclusters;
    return d;
  }
  static Descriptor normal(const Geometry& geometry, HostOffset host) {
    Descriptor d;
    d.copied = d.has_host = true;
    d.host = host;
    d.allocated = geometry.all_subclusters;
    return d;
  }
  static Descriptor compressed_at(HostOffset host, std::uint64_t length);

  /// True if every subcluster can be written in place.
  bool in_place(const Geometry& geometry) const {
    return !compressed && copied && allocated == geometry.all_subclusters;
  }
  bool is_zero(const Geometry& geometry) const { return zero == geometry.all_subclusters; }
  /// True if all subclusters are of one kind.
  bool is_uniform(const Geometry& geometry) const {
    return allocated == geometry.all_subclusters || zero == geometry.all_subclusters ||
           (allocated == 0 && zero == 0);
  }
  bool is_unallocated() const { return !compressed && allocated == 0 && zero == 0; }

  /// Throws Error(EIO) if the entry is corrupt: unaligned offsets, a zero flag in version 2,
  /// compressed clusters beside a data file, subclusters both allocated and zero.
  /// Reserved bits are ignored, as every reader does; `check` reports them.
  static Descriptor decode(std::uint64_t word, std::uint64_t bitmap, const Geometry& geometry);

  struct Words {
    std::uint64_t word;
    std::uint64_t bitmap;  // only stored with extended L2
  };
  Words encode(const Geometry& geometry) const;
};

}  // namespace vise::qcow2
