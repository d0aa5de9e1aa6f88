// From guest clusters to descriptors and back: the L1 table, and L2 tables through their cache.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "format/qcow2/descriptor.h"
#include "format/qcow2/header.h"
#include "format/qcow2/space.h"
#include "format/qcow2/table_cache.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise::qcow2 {

class Mapping {
 public:
  Mapping(Header& header, const Geometry& geometry, Child& file, Space& space,
          std::uint64_t slice_size, std::uint64_t cache_size, OverlapGuard& guard);

  /// Reads the active L1 table.
  Task<void> load();

  /// The descriptor of a guest cluster; nothing if its slice is not in the cache.
  /// Throws Error(EIO) for corrupt entries, here and below.
  std::optional<Descriptor> try_get(std::uint64_t cluster);
  Task<Descriptor> get(std::uint64_t cluster);

  /// The descriptors from `first` on: at least one, at most `most`, as far as one slice goes; an
  /// L1 entry without table stands for all its clusters at once (see Stretch::same).
  struct Stretch {
    std::vector<Descriptor> descriptors;
    std::uint64_t count = 0;  // clusters described
    bool same = false;        // descriptors holds one, which is that of all `count` clusters
  };
  Task<Stretch> get_stretch(std::uint64_t first, std::uint64_t most);
  /// The same without suspending; nothing if the slice is not in the cache.
  std::optional<Stretch> try_get_stretch(std::uint64_t first, std::uint64_t most);

  /// A descriptor, and how many clusters from its own on carry it on: without host space they are
  /// the same, with it their space follows. One, where subclusters differ or it is compressed.
  struct ClusterRun {
    Descriptor descriptor;
    std::uint64_t count = 1;
  };
  /// The run that starts at `first`, at most `most`, as far as one slice goes; only its first entry
  /// is decoded. Nothing if the slice is not in the cache.
  using Use = TableCache::Use;
  std::optional<ClusterRun> try_get_run(std::uint64_t first, std::uint64_t most, Use use);
  Task<ClusterRun> get_run(std::uint64_t first, std::uint64_t most, Use use);

  /// Makes sure that the L2 tables of these clusters exist and are ours alone. Allocates, so the
  /// caller has the turn.
  Task<void> make_writable(std::uint64_t first, std::uint64_t count);
  bool has_table(std::uint64_t cluster) const;

  /// Drained: copies an L2 table that is ours alone to a free cluster before its own. False, with
  /// nothing changed, if there is none.
  Task<bool> move_table(std::uint64_t l1_index);

  /// Replaces entries; their tables must be writable. What the old ones pointed to is freed later,
  /// unless the new entry keeps it.
  Task<void> set(std::uint64_t first, std::span<const Descriptor> descriptors,
                 Space::Reason reason);

  /// Removes the L2 tables from L1 entry `first` on; their clusters have been freed before.
  void drop_tables(std::uint64_t first);

  /// The disk has another L1 table and other L2 tables from now on. Nothing may be dirty or in use.
  void replace(std::vector<std::uint64_t> l1);

  /// What a commit writes, as it was at one moment.
  struct Changes {
    std::vector<TableCache::Image> new_tables;  // slices of tables no L1 entry on disk names
    std::vector<TableCache::Image> slices;      // of the others
    std::vector<std::uint64_t> l1_indices;
    std::vector<std::uint64_t> l1_entries;
    bool empty() const { return new_tables.empty() && slices.empty() && l1_indices.empty(); }
  };
  Changes changes() const;
  Task<void> write_new_tables(Changes& changes);
  Task<void> write_links(Changes& changes);

  bool is_dirty() const { return cache_.dirty_bytes() > 0 || !dirty_l1_.empty(); }
  std::uint64_t dirty_bytes() const { return cache_.dirty_bytes(); }
  TableCache& cache() { return cache_; }
  const std::vector<std::uint64_t>& l1() const { return l1_; }
  std::vector<std::uint64_t>& l1() { return l1_; }

 private:
  HostOffset table_of(std::uint64_t l1_index) const;
  HostOffset slice_of(HostOffset table, std::uint64_t cluster, std::uint64_t* index) const;
  Descriptor decode_entry(const std::byte* entry, std::uint64_t cluster) const;
  Stretch decode(TableCache::Ref& slice, std::uint64_t index, std::uint64_t cluster,
                 std::uint64_t most) const;
  void guard_tables();
  Task<void> load_slice(std::uint64_t cluster, Use use);
  Task<void> make_table(std::uint64_t l1_index);
  Task<void> copy_table(std::uint64_t l1_index, HostRange fresh);

  Header& header_;
  const Geometry& geometry_;
  Child& file_;
  Space& space_;
  OverlapGuard& guard_;
  TableCache cache_;
  std::vector<std::uint64_t> l1_;     // as in memory; the disk may be behind
  std::set<std::uint64_t> dirty_l1_;  // indices that differ from the disk
};

}  // namespace vise::qcow2
