// Where the metadata lie, so that nothing else is written there: the option overlap-check. A write
// that would hit some means that the image contradicts itself (a count says "free" of a table,
// say).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "format/qcow2/header.h"
#include "vise/error.h"
#include "vise/task.h"
#include "vise/types.h"

namespace vise::qcow2 {

/// What overlap-check names, one bit each.
enum class Metadata : std::uint32_t {
  main_header = 1,
  active_l1 = 2,
  active_l2 = 4,
  refcount_table = 8,
  refcount_block = 16,
  snapshot_table = 32,
  inactive_l1 = 64,
  inactive_l2 = 128,
  bitmap_directory = 256,
};
using MetadataSet = FlagSet<Metadata>;

/// As messages name it.
std::string_view name_of(Metadata kind);

class OverlapGuard {
 public:
  /// `header` outlives this object; what it says is looked up there.
  OverlapGuard(const Header& header, MetadataSet checked) : header_(header), checked_(checked) {}
  OverlapGuard(const OverlapGuard&) = delete;

  bool checks(Metadata kind) const { return checked_.has(kind); }
  /// What add() has been told of is known for all kinds, checked or not.
  void set_checked(MetadataSet checked) { checked_ = checked; }

  /// Tables of one cluster (active_l2, refcount_block, inactive_l2) come and go. One that is named
  /// several times goes with its last name.
  void add(Metadata kind, HostOffset table);
  void remove(Metadata kind, HostOffset table);
  void clear(Metadata kind);

  void set_snapshot_table(HostRange range) { snapshot_table_ = range; }
  void set_inactive_l1(std::vector<HostRange> tables) { inactive_l1_ = std::move(tables); }

  /// What a write to `range` would hit, other than `own`, which is what is to be written.
  std::optional<Metadata> find(HostRange range, MetadataSet own = {}) const;

  /// Awaited with what find() gave: marks the image corrupt and throws.
  std::function<Task<void>(Metadata, HostRange)> refuse;

  /// Told by whoever meets an entry that cannot be right, before it throws; may be empty. Marks the
  /// image corrupt.
  std::function<void(const Error&)> on_contradiction;
  /// Does `look` and passes on what it throws, which is told.
  template <class F>
  auto telling(F look) const {
    try {
      return look();
    } catch (const Error& error) {
      if (on_contradiction) on_contradiction(error);
      throw;
    }
  }

 private:
  using Tables = std::unordered_map<std::uint64_t, std::uint32_t>;  // cluster: times named
  Tables& tables_of(Metadata kind);
  const Tables& tables_of(Metadata kind) const;

  const Header& header_;
  MetadataSet checked_;
  HostRange snapshot_table_;
  std::vector<HostRange> inactive_l1_;
  Tables active_l2_, refcount_blocks_, inactive_l2_;
};

}  // namespace vise::qcow2
