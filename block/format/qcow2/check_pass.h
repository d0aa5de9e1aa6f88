// One pass over all metadata of an image: counts every reference, compares with the stored
// refcounts, and notes what a repair needs. Reads only. Private to check*.cc and repair*.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "format/qcow2/cluster_counts.h"
#include "format/qcow2/header.h"
#include "format/qcow2/snapshot_table.h"
#include "vise/child.h"
#include "vise/image_operations.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// One L2 table and how many L1 entries lead to it.
struct L2Use {
  HostOffset offset;
  std::uint32_t l1_index = 0;  // the first active one
  std::uint32_t active = 0;    // entries of the active L1 table
  std::uint64_t total = 0;     // entries of all L1 tables
};

/// A refcount that differs from the references.
struct CountChange {
  std::uint64_t cluster;
  std::uint64_t stored;
  std::uint64_t references;
};

/// The place of an L2 entry that is to be replaced.
struct EntryFix {
  HostOffset offset;   // of the entry in the file
  std::uint64_t word;  // the new first word
};

class CheckPass {
 public:
  /// Throws Error(EFBIG) if the file has too many clusters. All arguments outlive the pass.
  CheckPass(Child& file, const Header& header, const CheckRequest& request);

  /// A pass that is followed by a repair leaves the COPIED flags to that, since they depend on the
  /// repaired refcounts.
  enum class Copied { check, later };
  Task<void> run(Copied copied);

  // What is known afterwards.
  CheckResult result;
  ClusterCounts references;
  ClusterCounts stored;                       // the refcounts of clusters inside the file
  std::vector<CountChange> changes;           // ascending
  std::vector<L2Use> l2_tables;               // ascending; aligned and inside the file
  std::vector<EntryFix> unaligned_zeroes;     // to become plain zero entries
  std::vector<std::uint64_t> refcount_table;  // as stored
  std::vector<HostRange> refcount_ranges;     // counted for the refcount structures themselves
  SnapshotTable snapshots;
  bool needs_rebuild = false;          // of the refcount structures
  std::uint64_t structure_faults = 0;  // corruptions that a rebuild mends, besides wrong counts
  bool bitmaps_broken = false;
  /// Something could not be followed, so that `references` lacks what hangs below: to lower counts
  /// by them would lose data.
  bool incomplete = false;

  /// Of the corruptions, those that would not be there had these clusters been in use otherwise.
  struct Doubt {
    std::uint64_t first;
    std::uint64_t last;  // inclusive
  };
  std::vector<Doubt> doubts;

  /// Counts a finding that is a corruption and tells people.
  void corruption(const std::string& text);
  /// The same for one that depends on what else was found about some clusters.
  void corruption(const std::string& text, Doubt about);
  void report(const std::string& text) const;

  std::uint64_t cluster_of(HostOffset offset) const {
    return offset.bytes() >> header_.cluster_bits;
  }
  std::uint64_t file_clusters() const { return file_clusters_; }

 private:
  // check_pass.cc
  bool add_reference(HostRange range, std::uint64_t times = 1);
  void add_metadata(HostRange range, std::uint64_t times = 1);
  Task<void> count_snapshots();
  Task<void> count_bitmaps();
  Task<void> count_bitmap_data(HostRange table);
  // check_refcounts.cc
  Task<void> load_refcounts();
  std::vector<std::uint64_t> check_refcount_table();
  void load_block(std::uint64_t index, std::span<const std::byte> block);
  void check_blocks();
  void structure_fault(const std::string& text);
  Task<void> compare();
  void compare_cluster(std::uint64_t cluster);
  bool count_is_unknown(std::uint64_t cluster) const;
  // check_mapping.cc
  enum class Table { active, snapshot };
  Task<void> count_l1(HostRange table, Table kind, std::uint64_t times);
  void count_l1_entry(std::uint64_t entry, std::uint32_t index, Table kind, std::uint64_t times,
                      std::vector<L2Use>& found);
  bool copied_is_wrong(std::uint64_t word) const;
  void merge_l2_tables(std::vector<L2Use> found);
  Task<void> count_l2_tables();
  void visit_l2(const L2Use& use, std::span<const std::byte> table);
  struct Entry;
  void visit_compressed(const Entry& entry);
  void visit_standard(const Entry& entry);
  void visit_host_cluster(const Entry& entry);
  void check_data_file_entry(const Entry& entry);
  void check_not_metadata(HostRange range, std::uint64_t word);

  Child& file_;
  const Header& header_;
  const CheckRequest& request_;
  std::uint64_t file_length_;
  std::uint64_t file_clusters_;
  Copied copied_ = Copied::check;
  std::vector<std::uint64_t> block_indexes_;   // of the refcount blocks that count as such ...
  std::vector<HostOffset> block_offsets_;      // ... and where they are
  std::vector<std::uint64_t> unknown_blocks_;  // ascending indexes of those that cannot be read
  std::uint64_t next_contiguous_ = 0;          // host offset, of the L2 table being visited
};

}  // namespace vise::qcow2
