// The filter that a job puts above a node while it runs: it sees every change from above before the
// node does, and keeps changes and the job's copying apart.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "util/copy_locks.h"
#include "vise/filter.h"
#include "vise/graph.h"

namespace vise {

class JobFilter final : public Filter {
 public:
  using Filter::Filter;

  /// What a change waits for before it goes on; must not throw. May be empty.
  std::function<Task<void>(GuestRange)> before_change;
  CopyLocks& locks() { return locks_; }
  /// Told of each change after it, even if it failed; it completes only after that. May be empty.
  std::function<Task<void>(GuestRange)> after_change;
  /// What others may do with the node below. as_above: what the parents say. exclusive: no writes,
  /// which would go unseen here. all: everything, as the job itself writes further down.
  enum class Sharing { as_above, exclusive, all };
  void set_sharing(Sharing sharing) { sharing_ = sharing; }
  /// Discards of the node below, past everything above. Asks for permission first.
  void set_discards(bool discards) { discards_ = discards; }
  Task<void> discard_below(GuestRange range) { return Filter::discard(range); }

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override;
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override;
  Task<void> discard(GuestRange range) override;
  Task<void> truncate(std::uint64_t size, TruncateOptions options) override;
  Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags) override;
  Permissions child_permissions(const Child& edge, Permissions parents) const override;

 private:
  Task<void> store_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags, bool& stored);
  Task<CopyLocks::Guard> begin_change(GuestRange range);
  Task<void> around_change(GuestRange range, Task<void> change);

  CopyLocks locks_;
  Sharing sharing_ = Sharing::as_above;
  bool discards_ = false;
};

/// A JobFilter in its place.
class PlacedFilter {
 public:
  /// `driver_name`: what queries show. `name`: of the node; nothing: an automatic one. What was
  /// above `below` is above the filter then. Throws Error, with nothing changed.
  static Task<std::unique_ptr<PlacedFilter>> place(
      Node& below, const DriverType& type, std::optional<std::string> name,
      JobFilter::Sharing sharing = JobFilter::Sharing::exclusive);
  /// Gives its parents back to the node, and closes it. Awaited before destruction.
  Task<void> remove();
  /// The same with the parents going to another node.
  Task<void> remove_onto(Node& node);

  /// From here on the job may discard_below(). Throws Error(EACCES, EPERM), with nothing changed.
  Task<void> allow_discards();

  Node& node() const { return *node_; }
  JobFilter& filter() const { return static_cast<JobFilter&>(node_->driver()); }

 private:
  PlacedFilter() = default;
  Task<void> set_sharing(JobFilter::Sharing sharing);

  std::shared_ptr<Node> node_;
  std::shared_ptr<Node> below_;
  std::unique_ptr<Child> hold_;  // so that it stays when nothing else is above it
};

/// Drivers of such filters, by what they are called.
extern const DriverType stream_filter_type;  // copy-on-read
extern const DriverType backup_filter_type;  // copy-before-write
extern const DriverType mirror_filter_type;  // mirror_top
extern const DriverType commit_filter_type;  // commit_top

/// What is above `from` goes above `to`, but for `kept`, which may be null: all, or nothing if the
/// Error is thrown. Both are drained, and `to` shares what is needed.
Task<void> move_users(Node& from, const std::shared_ptr<Node>& to, const Child* kept);

/// `node`, or the uppermost filter that jobs have put above it: where others come in.
Node& above_job_filters(Node& node);

}  // namespace vise
