#include "job/job_filter.h"

#include <algorithm>
#include <vector>

#include "graph/drained.h"
#include "vise/error.h"

namespace vise {

Task<CopyLocks::Guard> JobFilter::begin_change(GuestRange range) {
  if (before_change) co_await before_change(range);
  co_return co_await locks_.lock(range, CopyLocks::Kind::change);
}

Task<void> JobFilter::around_change(GuestRange range, Task<void> change) {
  std::exception_ptr failure;
  {
    const CopyLocks::Guard guard = co_await begin_change(range);
    try {
      co_await std::move(change);
    } catch (...) {
      failure = std::current_exception();
    }
  }
  if (after_change) co_await after_change(range);
  if (failure) std::rethrow_exception(failure);
}

Task<void> JobFilter::write(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  return around_change({offset, data.size()}, Filter::write(offset, data, flags));
}

Task<void> JobFilter::write_zeroes(GuestRange range, ZeroFlags flags) {
  return around_change(range, Filter::write_zeroes(range, flags));
}

Task<void> JobFilter::discard(GuestRange range) {
  return around_change(range, Filter::discard(range));
}

Task<void> JobFilter::truncate(std::uint64_t, TruncateOptions) {
  throw Error(EBUSY, "The image cannot be resized while a job works on it");
  co_return;
}

Task<bool> JobFilter::write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                                    WriteFlags flags) {
  std::uint64_t length = 0;
  for (const EncodedExtent& extent : extents) length += extent.guest_length;
  bool stored = false;
  co_await around_change({offset, length}, store_encoded(offset, extents, flags, stored));
  co_return stored;
}

Task<void> JobFilter::store_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                                    WriteFlags flags, bool& stored) {
  const bool result = co_await Filter::write_encoded(offset, extents, flags);
  stored = result;
}

Permissions JobFilter::child_permissions(const Child& edge, Permissions parents) const {
  Permissions needs = Filter::child_permissions(edge, parents);
  if (sharing_ == Sharing::exclusive) {
    needs.shares = needs.shares.without(PermissionSet(Permission::write) | Permission::resize);
  } else if (sharing_ == Sharing::all) {
    needs.shares = Permissions::all();
  }
  if (discards_) needs.uses = needs.uses | Permission::write;
  return needs;
}

namespace {

Task<std::unique_ptr<Driver>> open_filter(OpenContext& context) {
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  co_return std::make_unique<JobFilter>(std::move(child));
}

}  // namespace

const DriverType stream_filter_type = {
    .name = "copy-on-read", .kind = DriverKind::filter, .open = open_filter};
const DriverType backup_filter_type = {
    .name = "copy-before-write", .kind = DriverKind::filter, .open = open_filter};
const DriverType mirror_filter_type = {
    .name = "mirror_top", .kind = DriverKind::filter, .open = open_filter};
const DriverType commit_filter_type = {
    .name = "commit_top", .kind = DriverKind::filter, .open = open_filter};

Task<void> move_users(Node& from, const std::shared_ptr<Node>& to, const Child* kept) {
  std::vector<Child*> edges;
  for (Child* edge : from.parents()) {
    if (edge != kept) edges.push_back(edge);
  }
  std::size_t moved = 0;
  std::exception_ptr failure;
  try {
    for (; moved < edges.size(); ++moved) co_await edges[moved]->replace_node(to);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  const std::shared_ptr<Node> back = from.shared_from_this();
  while (moved-- > 0) co_await edges[moved]->replace_node(back);
  std::rethrow_exception(failure);
}

Node& above_job_filters(Node& node) {
  const auto is_job_filter = [](const Child* edge) {
    if (edge->parent() == nullptr) return false;
    const DriverType* const type = &edge->parent()->type();
    return type == &stream_filter_type || type == &backup_filter_type ||
           type == &mirror_filter_type || type == &commit_filter_type;
  };
  Node* top = &node;
  for (;;) {
    const auto found = std::ranges::find_if(top->parents(), is_job_filter);
    if (found == top->parents().end()) return *top;
    top = (*found)->parent();
  }
}

Task<std::unique_ptr<PlacedFilter>> PlacedFilter::place(Node& below, const DriverType& type,
                                                        std::optional<std::string> name,
                                                        JobFilter::Sharing sharing) {
  std::unique_ptr<PlacedFilter> placed(new PlacedFilter());
  placed->below_ = below.shared_from_this();
  OpenRequest request;
  request.options.set("file", below.name());
  if (name) request.options.set("node-name", *name);
  request.defaults.read_only = below.read_only();
  request.defaults.discard_unmap = true;
  std::shared_ptr<Node> node = co_await below.graph().open_as(type, std::move(request));
  placed->node_ = node;
  std::unique_ptr<Child> hold = co_await below.graph().attach(
      nullptr, std::string("job"), EdgeRole::root, node, Permissions{{}, Permissions::all()});
  placed->hold_ = std::move(hold);
  std::exception_ptr failure;
  try {
    const std::function<Task<void>()> work = [&] {
      return move_users(below, placed->node_, placed->node_->filtered_child());
    };
    co_await while_drained(below, work);
    co_await placed->set_sharing(sharing);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return placed;
  co_await placed->remove();
  std::rethrow_exception(failure);
}

// Only when all have moved: before, they would have been in the way of those who had not.
Task<void> PlacedFilter::set_sharing(JobFilter::Sharing sharing) {
  filter().set_sharing(sharing);
  co_await hold_->set_permissions(hold_->permissions());  // works out what is needed below
}

Task<void> PlacedFilter::allow_discards() {
  std::exception_ptr failure;
  filter().set_discards(true);
  try {
    co_await hold_->set_permissions(hold_->permissions());
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  filter().set_discards(false);
  std::rethrow_exception(failure);
}

Task<void> PlacedFilter::remove() { return remove_onto(*below_); }

Task<void> PlacedFilter::remove_onto(Node& node) {
  const std::shared_ptr<Node> to = node.shared_from_this();
  co_await set_sharing(JobFilter::Sharing::as_above);
  std::exception_ptr failure;
  try {
    const std::function<Task<void>()> work = [&] { return move_users(*node_, to, hold_.get()); };
    co_await while_drained(*node_, work);
  } catch (...) {
    failure = std::current_exception();
  }
  filter().before_change = nullptr;
  filter().after_change = nullptr;
  co_await hold_->detach();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise
