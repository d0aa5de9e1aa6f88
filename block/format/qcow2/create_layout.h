// Where everything lies in a new image.
#pragma once

#include <cstdint>
#include <span>

#include "format/qcow2/header.h"

namespace vise::qcow2 {

/// The clusters of a new image, all from 0 to `clusters` in use once. In units of clusters.
///
/// Plain images are laid out as QEMU does it: header, refcount table, first refcount block, L1
/// table, further refcount blocks (of these the one that counts them second). Where the refcount
/// table needs more than one cluster, or tables and data are preallocated, parts of one kind lie
/// together: header, refcount table, refcount blocks, L1 table, L2 tables, data.
struct CreateLayout {
  std::uint64_t table_clusters = 1;  // the refcount table starts at cluster 1
  std::uint64_t blocks = 1;          // refcount blocks
  std::uint64_t first_blocks = 1;    // of these, directly behind the table
  std::uint64_t self_block = 1;      // the one that counts the first cluster behind the L1 table
  std::uint64_t l1 = 3;
  std::uint64_t l1_clusters = 0;
  std::uint64_t l2 = 0;
  std::uint64_t l2_tables = 0;
  std::uint64_t data = 0;
  std::uint64_t data_clusters = 0;    // in this file
  std::uint64_t mapped_clusters = 0;  // named by the L2 tables, here or in the data file
  std::uint64_t clusters = 3;

  /// For `header`, which has everything but the places of the tables; sets those. `preallocated`:
  /// every guest cluster gets an L2 entry and a host cluster. Throws Error(EFBIG) if the refcount
  /// table would be beyond its limit.
  enum class Kind { plain, preallocated };
  static CreateLayout make(Header& header, Kind kind);

  /// Bytes of the file: QEMU's images end with the last L1 entry, not with its cluster.
  std::uint64_t file_length(const Header& header) const;
  /// The metadata cluster with that number, never 0 (the header), as it is to be on disk. `bytes`
  /// is one cluster of zeros.
  void fill(const Header& header, std::uint64_t cluster, std::span<std::byte> bytes) const;

  /// The cluster of refcount block `index`.
  std::uint64_t block(std::uint64_t index) const;
  /// The first cluster behind all metadata.
  std::uint64_t metadata_end() const { return clusters - data_clusters; }

 private:
  std::uint64_t block_behind_l1(std::uint64_t cluster) const;
};

}  // namespace vise::qcow2
