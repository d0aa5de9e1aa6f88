// What hangs below an L1 table, for operations that share, unshare or drop whole tables at once:
// snapshots, resizing, emptying an image. They run drained, with nothing dirty in the cache of L2
// tables, and read and write the tables themselves.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "format/qcow2/descriptor.h"
#include "format/qcow2/header.h"
#include "format/qcow2/refcounts.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// How often each host cluster is referenced; sparse.
class References {
 public:
  static constexpr std::uint64_t chunk_clusters = 1024;
  using Chunk = std::array<std::uint32_t, chunk_clusters>;

  void add(std::uint64_t cluster, std::uint32_t times = 1);
  void add(HostRange range, unsigned cluster_bits, std::uint32_t times = 1);

  /// Calls `use(cluster)` for each that is referenced, in order.
  template <class F>
  void for_each(F use) const {
    for (const auto& [index, chunk] : chunks_) {
      for (std::uint64_t i = 0; i < chunk_clusters; ++i) {
        if ((*chunk)[i] != 0) use(index * chunk_clusters + i);
      }
    }
  }

  // All of them, each applied to the counts on disk (refcounts.h).
  Task<void> check_raise(Refcounts& counts) const;
  Task<void> raise(Refcounts& counts) const;
  Task<std::vector<std::uint64_t>> lower(Refcounts& counts) const;

 private:
  std::map<std::uint64_t, std::unique_ptr<Chunk>> chunks_;  // by cluster / chunk_clusters
  Chunk* last_ = nullptr;
  std::uint64_t last_index_ = 0;
};

class L1Tree {
 public:
  /// `l1` holds L1 entries; all arguments outlive the object.
  L1Tree(Child& file, const Header& header, const Geometry& geometry,
         std::span<const std::uint64_t> l1, const OverlapGuard& guard);

  /// The L2 tables and all they point to, but not the L1 table itself. Throws Error(EIO) for
  /// entries that cannot be right.
  Task<References> references();

  /// Clears COPIED in the entries of all L2 tables on disk that have it set. Not flushed.
  /// Throws Error(EIO), with nothing changed there, for a table that lies in other metadata.
  Task<void> clear_copied(const Refcounts& counts);

  /// Sets COPIED in the L2 entries on disk whose clusters have count 1 and in `l1`, which holds the
  /// same entries as the constructor's; true if `l1` has changed. Not flushed.
  Task<bool> set_copied(Refcounts& counts, std::vector<std::uint64_t>& l1);

 private:
  struct Table {
    HostOffset offset;
    std::uint32_t times;  // how many entries lead there
  };
  std::vector<Table> tables() const;
  void count_entries(std::span<const std::byte> table, std::uint32_t times, References& found);
  bool clear_entries(std::span<std::byte> table) const;
  Task<bool> set_entries(Refcounts& counts, std::span<std::byte> table);

  Child& file_;
  const Header& header_;
  const Geometry& geometry_;
  std::span<const std::uint64_t> l1_;
  const OverlapGuard& guard_;
};

}  // namespace vise::qcow2
