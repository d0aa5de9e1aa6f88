// Mends what a pass of the check found. Private to check*.cc and repair*.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "format/qcow2/check_pass.h"
#include "format/qcow2/header.h"
#include "vise/child.h"
#include "vise/image_operations.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// The order of the steps keeps every crash state repairable: pointers that go away first, counts
/// that rise, then pointers that need them, counts that fall last, a barrier between each two.
class Repairer {
 public:
  /// `pass` has run with Copied::later. All arguments outlive the repair; `header` follows what is
  /// written.
  Repairer(Child& file, Header& header, const CheckRequest& request, CheckPass& pass)
      : file_(file), header_(header), request_(request), pass_(pass) {}

  Task<void> run();

  std::uint64_t corruptions_fixed = 0;
  std::uint64_t leaks_fixed = 0;

 private:
  enum class Counts { raise, lower };
  bool repairs_all() const { return request_.repair == Repair::all; }
  void report(const std::string& text) const { pass_.report(text); }

  // repair.cc
  Task<void> drop_bitmaps();
  Task<void> fix_unaligned_zeroes();
  Task<void> write_counts(Counts direction);
  Task<void> write_block(std::uint64_t index, std::span<const CountChange> changes);
  Task<void> write_header_field(std::uint64_t offset, std::span<const std::byte> bytes);
  // repair_copied.cc: the COPIED flags of the active tables, by the counts as they are now
  Task<void> fix_copied();
  Task<void> fix_copied_l1(std::vector<std::byte>& l1);
  Task<void> fix_copied_l2(HostOffset table);
  bool fix_copied_entry(std::byte* entry);
  bool copied_may_be_fixed() const;
  // rebuild.cc: new refcount structures behind everything else
  Task<void> rebuild();
  void forget_old_structures();
  Task<void> write_snapshot_table(HostOffset at);
  Task<void> switch_snapshot_table(HostOffset at);

  Child& file_;
  Header& header_;
  const CheckRequest& request_;
  CheckPass& pass_;
};

}  // namespace vise::qcow2
