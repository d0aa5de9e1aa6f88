// The qcow2 header with its extensions: parsed and checked as a whole, written back as a whole.
// Source: docs/qcow2.md and the qcow2 specification, "Header".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vise/driver.h"
#include "vise/types.h"

namespace vise::qcow2 {

namespace incompatible {
inline constexpr std::uint64_t dirty = 1u << 0;
inline constexpr std::uint64_t corrupt = 1u << 1;
inline constexpr std::uint64_t data_file = 1u << 2;
inline constexpr std::uint64_t compression_type = 1u << 3;
inline constexpr std::uint64_t extended_l2 = 1u << 4;
/// Ours, not in the specification: the image is still being made. The feature name table names it
/// "incomplete image", so that every conforming reader refuses it by that name.
inline constexpr std::uint64_t incomplete = std::uint64_t{1} << 62;
}  // namespace incompatible
namespace compatible {
inline constexpr std::uint64_t lazy_refcounts = 1u << 0;
}
namespace autoclear {
inline constexpr std::uint64_t bitmaps = 1u << 0;
inline constexpr std::uint64_t raw_data_file = 1u << 1;
/// A writer clears all others before its first write.
inline constexpr std::uint64_t known = bitmaps | raw_data_file;
}  // namespace autoclear

inline constexpr std::uint32_t magic = 0x514649fb;  // "QFI\xfb"

/// Where the fields lie that are updated in place, each group by one write (qcow2.md 2.5).
namespace field_offset {
inline constexpr std::uint64_t virtual_size = 24;           // u64
inline constexpr std::uint64_t l1_table = 36;               // u32 entries, u64 offset
inline constexpr std::uint64_t refcount_table = 48;         // u64 offset, u32 clusters
inline constexpr std::uint64_t snapshots = 60;              // u32 count, u64 offset
inline constexpr std::uint64_t incompatible_features = 72;  // u64
inline constexpr std::uint64_t autoclear_features = 88;     // u64
}  // namespace field_offset

// Our limits, most of them QEMU's: they bound what a hostile image can make us allocate.
inline constexpr std::uint32_t min_cluster_bits = 9;
inline constexpr std::uint32_t max_cluster_bits = 21;
inline constexpr std::uint32_t min_extended_l2_cluster_bits = 14;
inline constexpr std::uint64_t max_l1_bytes = 32u << 20;
inline constexpr std::uint64_t max_refcount_table_bytes = 8u << 20;
inline constexpr std::uint32_t max_snapshots = 65536;
inline constexpr std::size_t max_backing_name = 1023;  // bytes
inline constexpr std::size_t max_backing_format = 15;  // bytes
inline constexpr std::uint32_t max_bitmaps = 65535;
inline constexpr std::uint64_t max_bitmap_directory = std::uint64_t{max_bitmaps} * 1024;
inline constexpr std::uint64_t max_crypto_header = 64u << 20;

/// The bitmaps extension: where the directory of persistent dirty bitmaps lies.
struct BitmapsExtension {
  std::uint32_t count;
  HostRange directory;
};

/// Everything in the first cluster. decode() returns only values that are valid by themselves;
/// whether tables lie inside the file is checked where they are read.
struct Header {
  std::uint32_t version = 3;
  std::uint32_t cluster_bits = 16;
  std::uint64_t virtual_size = 0;  // bytes
  std::uint32_t crypt_method = 0;  // 0 none, 1 AES, 2 LUKS
  HostOffset l1_offset;
  std::uint32_t l1_entries = 0;
  HostOffset refcount_table_offset;
  std::uint32_t refcount_table_clusters = 0;
  HostOffset snapshots_offset;
  std::uint32_t snapshot_count = 0;
  std::uint64_t incompatible_features = 0;
  std::uint64_t compatible_features = 0;
  std::uint64_t autoclear_features = 0;
  std::uint32_t refcount_order = 4;  // refcounts are 1 << order bits wide
  Codec compression = Codec::deflate;
  std::vector<std::byte> unknown_fields;  // bytes [112, header_length), kept verbatim

  std::string backing_name;    // as stored; empty: none
  std::string backing_format;  // as stored; empty: none
  std::string data_file_name;  // as stored; empty: none
  std::optional<BitmapsExtension> bitmaps;
  std::optional<HostRange> crypto_header;
  struct UnknownExtension {
    std::uint32_t type;
    std::vector<std::byte> data;
  };
  std::vector<UnknownExtension> unknown_extensions;  // written back in this order

  std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits; }
  bool extended_l2() const { return (incompatible_features & incompatible::extended_l2) != 0; }
  bool has_data_file() const { return (incompatible_features & incompatible::data_file) != 0; }
  unsigned l2_entry_size() const { return extended_l2() ? 16 : 8; }              // bytes
  std::uint64_t l2_entries() const { return cluster_size() / l2_entry_size(); }  // per table
  std::uint64_t l2_coverage() const { return l2_entries() << cluster_bits; }     // guest bytes
  unsigned refcount_bits() const { return 1u << refcount_order; }
  std::uint64_t refcount_max() const {
    return refcount_order == 6 ? UINT64_MAX : (std::uint64_t{1} << refcount_bits()) - 1;
  }
  std::uint64_t refcount_block_entries() const { return cluster_size() * 8 >> refcount_order; }
  HostRange l1_table() const { return {l1_offset, std::uint64_t{l1_entries} * 8}; }
  HostRange refcount_table() const {
    return {refcount_table_offset, std::uint64_t{refcount_table_clusters} << cluster_bits};
  }

  /// check: also opens what only repair can mend; make: also what is marked incomplete.
  enum class Purpose { normal, check, make };

  /// `image_start` is untrusted: the first cluster, or as much as there is (a shorter file counts
  /// as zero-extended; pass at least the first 2 MiB or the whole file). Throws Error(EINVAL) for
  /// what cannot be a qcow2 header, ENOTSUP for unknown versions and features (named by the feature
  /// name table), EFBIG beyond the limits.
  static Header decode(std::span<const std::byte> image_start, Purpose purpose = Purpose::normal);

  /// Throws what forbids writing to an image that may be read: Error(EACCES) for one marked
  /// corrupt, EINVAL where two of header, L1 table, refcount table, snapshot table, bitmap
  /// directory and crypto header share bytes, so that changing one would destroy the other.
  /// `snapshot_table_bytes`: its length as read, 0 if there is none.
  void check_writable(std::uint64_t snapshot_table_bytes = 0) const;

  /// The whole first cluster, as QEMU would write it. The feature name table is left out where it
  /// does not fit the conventions (version 2, clusters up to 4 KiB), except that an `incomplete`
  /// image always names that bit if there is room. Throws Error(ENOSPC) if extensions and backing
  /// name do not fit the cluster, EINVAL for strings beyond the format's limits.
  std::vector<std::byte> encode() const;
};

}  // namespace vise::qcow2
