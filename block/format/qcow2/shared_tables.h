// The L1 tables of an image side by side: which L2 tables they name, how often, and what the
// entries of these say about the same guest clusters. What is read of them at a time is bounded,
// however many snapshots there are and however large the disk is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "format/qcow2/descriptor.h"
#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/task.h"

namespace vise::qcow2 {

struct Snapshot;

/// An L2 table, and how it is used.
struct SharedTable {
  HostOffset offset;
  std::uint64_t times = 0;  // L1 tables that name it at the same index
  bool is_active = false;   // one of them is the active one

  bool is_active_alone() const { return is_active && times == 1; }
};

/// The same stretch of entries of all L2 tables that cover a guest cluster.
struct SharedWindow {
  std::vector<SharedTable> tables;  // each once, by offset
  bool in_snapshot = false;         // a snapshot names one of them, at least
  std::uint64_t first = 0;          // guest cluster
  std::uint64_t count = 0;          // guest clusters; never 0
  unsigned entry_size = 0;          // bytes
  std::uint64_t first_index = 0;    // of the first entry in each table
  std::vector<std::byte> entries;   // those of one table, then those of the next

  /// What table `t` says of guest cluster first + `i`, and where that lies.
  std::span<const std::byte> entry(std::size_t t, std::uint64_t i) const {
    return std::span(entries).subspan((t * count + i) * entry_size, entry_size);
  }
  HostOffset place(std::size_t t, std::uint64_t i) const {
    return tables[t].offset + (first_index + i) * entry_size;
  }
};

/// Of which windows the entries are read: those where a snapshot has a table, or all.
enum class WantedTables { shared, all };

class SharedTables {
 public:
  /// All arguments outlive the object; `active` holds the entries of the active L1 table, and may
  /// change.
  SharedTables(Child& file, const Header& header, const Geometry& geometry,
               const std::vector<std::uint64_t>& active);

  /// Throws what Snapshot::check_l1() does.
  void add(const Snapshot& snapshot);

  /// Entries of the longest L1 table, and guest clusters that it covers.
  std::uint64_t l1_entries() const;
  std::uint64_t clusters() const { return l1_entries() << geometry_.l2_bits; }

  /// Reads what at() and names() need to know of that index.
  Task<void> load(std::uint64_t index);
  /// The tables that entry `index` names, each once, by offset. Throws Error(EIO) for an entry that
  /// is not cluster-aligned.
  std::vector<SharedTable> at(std::uint64_t index) const;
  /// An L1 entry on disk.
  struct Name {
    HostOffset place;
    std::uint64_t word;
  };
  /// Those that name `table` at that index.
  std::vector<Name> names(std::uint64_t index, HostOffset table) const;

  /// The tables at the index of `cluster` and, if there are any, entries from there on. Nothing is
  /// read where only the disk has a table, unless it is asked for. Loads, and throws like at().
  Task<SharedWindow> window(std::uint64_t cluster, WantedTables wanted);
  /// Guest clusters in that window; 0 if what it takes to know that could not be loaded.
  std::uint64_t window_length(std::uint64_t cluster) const;

 private:
  struct L1 {
    HostRange place;
    std::uint64_t times = 0;             // snapshots that have the same one
    std::vector<std::uint64_t> entries;  // in the window
  };
  void merge();
  std::uint64_t entry(const L1& l1, std::uint64_t index) const;
  std::uint64_t active_entry(std::uint64_t index) const;
  std::uint64_t window_size() const;

  Child& file_;
  const Header& header_;
  const Geometry& geometry_;
  const std::vector<std::uint64_t>& active_;
  std::vector<L1> snapshots_;
  bool merged_ = true;              // each L1 table is in snapshots_ once
  std::uint64_t longest_ = 0;       // entries, of snapshots
  std::uint64_t window_start_ = 0;  // L1 indices in memory: [window_start_, window_end_)
  std::uint64_t window_end_ = 0;
};

}  // namespace vise::qcow2
