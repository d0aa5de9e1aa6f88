// The generic request path: what every request between two nodes has in common. An aligned request
// costs one coroutine frame here; whatever needs more goes on in transfer.cc.
#include <fmt/format.h>

#include <cerrno>

#include "graph/tracking.h"
#include "graph/transfer.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"
#include "vise/worker_pool.h"

namespace vise {

namespace {

using Change = TrackedRequest::Change;
using Serialising = TrackedRequest::Serialising;

constexpr std::uint64_t scan_here_bytes = 128u << 10;  // larger zero scans run on a worker
constexpr std::uint64_t transfer_limit = 1u << 30;     // where a driver has none: safely below 2^31

[[noreturn]] void throw_outside(const Node& node, GuestRange range) {
  throw Error(EIO, fmt::format("Request of {} bytes at offset {} reaches past the end of node '{}' "
                               "({} bytes)",
                               range.length, range.start.bytes(), node.name(), node.size()));
}

void check_inside(const Node& node, GuestRange range) {
  if (!range.ends_by(node.size())) [[unlikely]] {
    throw_outside(node, range);
  }
}

// Formats append to their files: where the node can grow and the edge may resize, a write may reach
// past the end.
void check_inside_or_growing(const Child& edge, GuestRange range) {
  const Node& node = edge.node();
  if (range.ends_by(node.size())) [[likely]]
    return;
  const bool grows = node.tracking().limits.growable && range.ends_by(INT64_MAX) &&
                     edge.permissions().uses.has(Permission::resize);
  if (!grows) throw_outside(node, range);
}

[[noreturn]] void throw_not_permitted(const Child& edge, const char* what) {
  const Node& node = edge.node();
  if (node.read_only()) throw Error(EROFS, fmt::format("Node '{}' is read-only", node.name()));
  throw Error(EPERM,
              fmt::format("'{}' of node '{}' was not opened for {}", edge.name(),
                          edge.parent() != nullptr ? edge.parent()->name() : node.name(), what));
}

void check_may_write(const Child& edge, bool unchanged) {
  const PermissionSet uses = edge.permissions().uses;
  if (edge.node().read_only() ||
      !(uses.has(Permission::write) || (unchanged && uses.has(Permission::write_unchanged))))
      [[unlikely]] {
    throw_not_permitted(edge, "writing");
  }
}

std::uint64_t round_limit(std::uint64_t limit, std::uint64_t unit, std::uint64_t without_limit) {
  return std::max(unit, align_down(limit == 0 ? without_limit : limit, unit));
}

// How much from the start of `range` on a request may have that is not padded: whole units, the
// last of the node may be a partial one.
std::uint64_t whole_units(const Node& node, GuestRange range, std::uint64_t unit,
                          std::uint64_t most) {
  if (!range.start.is_aligned(unit)) return 0;
  if (range.length <= most && range.end().bytes() == node.size()) return range.length;
  return align_down(std::min(range.length, most), unit);
}

// Runs a cheap scan here and a long one on a worker.
Task<bool> reads_as_zero(Context& context, ConstIoVec data) {
  if (data.size() <= scan_here_bytes) co_return is_zero(data);
  bool zero = false;
  std::function<void()> scan([&zero, &data] { zero = is_zero(data); });
  co_await context.workers().run(std::move(scan));
  co_return zero;
}

}  // namespace

EffectiveLimits::EffectiveLimits(const Limits& l)
    : read_alignment(std::max(l.request_alignment, 1u)),
      write_alignment(std::max<std::uint64_t>(read_alignment, l.write_alignment)),
      memory_alignment(std::max(l.memory_alignment, 1u)),
      compressed_unit(std::max(write_alignment, l.cluster_size)),
      zero_alignment(std::max<std::uint64_t>(l.zero_alignment, 1)),
      discard_alignment(std::max<std::uint64_t>(l.discard_alignment, 1)) {
  if (l.zero_alignment == 0) zero_alignment = write_alignment;
  if (l.discard_alignment == 0) discard_alignment = write_alignment;
  max_transfer = round_limit(l.max_transfer, write_alignment, transfer_limit);
  max_compressed = round_limit(l.max_transfer, compressed_unit, transfer_limit);
  if (l.max_segments != 0) max_segments = l.max_segments;
  max_zeroes = round_limit(l.max_zeroes, zero_alignment, INT64_MAX);
  max_discard = round_limit(l.max_discard, discard_alignment, INT64_MAX);
  for (const std::uint64_t alignment : {read_alignment, write_alignment, memory_alignment,
                                        zero_alignment, discard_alignment, compressed_unit}) {
    if (!std::has_single_bit(alignment)) {
      throw Error(EINVAL,
                  fmt::format("The driver asks for an alignment of {} bytes, which is not a "
                              "power of two",
                              alignment));
    }
  }
  if (memory_alignment > Buffer::alignment) {
    throw Error(EINVAL, fmt::format("The driver asks for a memory alignment of {} bytes, more than "
                                    "{}",
                                    memory_alignment, Buffer::alignment));
  }
}

/// Awaited before a request enters a node: roots wait while the node is being drained.
class Child::Admission {
 public:
  explicit Admission(const Child& edge)
      : held_back_(edge.parent_ == nullptr && edge.node_->tracking().quiesced > 0) {}
  explicit operator bool() const { return held_back_; }

  static Task<void> wait(const Child& edge) {
    // The edge may point to another node when the drain ends.
    while (edge.node_->tracking().quiesced > 0) {
      const std::shared_ptr<Node> node = edge.node_;
      co_await node->tracking().resumed.wait();
    }
  }

 private:
  bool held_back_;
};

std::uint64_t Child::size() const { return node_->size(); }

Limits Child::limits() const { return node_->tracking().limits; }

Task<void> Child::read(GuestOffset offset, IoVec data) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  const EffectiveLimits& limits = node.tracking().effective;
  const GuestRange range{offset, data.size()};
  TrackedRequest request(*this, range, Change::none, Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);

  check_inside(node, range);
  if (range.empty()) co_return;
  if (fits(limits, range, data, limits.read_alignment)) {
    co_await node.driver().read(offset, data);
    co_return;
  }
  const Target target{node.driver(), limits, node.size()};
  co_await read_any(target, offset, data);
}

Task<void> Child::write(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  const Node::Tracking& tracking = node.tracking();
  const EffectiveLimits& limits = tracking.effective;
  GuestRange range{offset, data.size()};
  check_may_write(*this, flags.unchanged);
  check_inside_or_growing(*this, range);
  if (range.empty()) co_return;
  if (node.options().detect_zeroes != DetectZeroes::off) {
    const bool zero = co_await reads_as_zero(node.graph().context(), data);
    if (zero) {
      const bool unmap = node.options().detect_zeroes == DetectZeroes::unmap;
      co_await write_zeroes(
          range, ZeroFlags{.may_unmap = unmap, .fua = flags.fua, .serialising = flags.serialising});
      co_return;
    }
  }
  if (flags.compressed) check_compressed(range);

  const bool whole_units = range.align_out(limits.write_alignment) == range;
  const bool serialising = flags.serialising || !whole_units;
  TrackedRequest request(*this, whole_units ? range : range.align_out(limits.write_alignment),
                         flags.unchanged ? Change::storage : Change::content,
                         serialising ? Serialising::yes : Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  check_inside_or_growing(*this, range);  // what was waited for may have been a truncate()

  const bool flush_after = flags.fua && !tracking.limits.native_fua;
  if (flush_after) flags.fua = false;
  if (node.options().cache_no_flush) flags.fua = false;
  if (!flags.compressed && fits(limits, range, data, limits.write_alignment)) {
    co_await EventPoint(node.driver().reached(Event::pwritev));
    co_await node.driver().write(offset, data, flags);
    co_await EventPoint(node.driver().reached(Event::pwritev_done));
  } else {
    const Target target{node.driver(), limits, node.size()};
    co_await write_any(target, offset, data, flags);
  }
  if (flush_after && !node.options().cache_no_flush) co_await node.driver().flush();
}

void Child::check_compressed(GuestRange range) const {
  const Node& node = *node_;
  const Node::Tracking& tracking = *node.tracking_;
  if (!tracking.limits.can_compress) {
    throw Error(ENOTSUP, fmt::format("Node '{}' (driver '{}') cannot store compressed data",
                                     node.name(), node.type().name));
  }
  const std::uint64_t unit = tracking.effective.compressed_unit;
  const std::uint64_t end = range.end().bytes();
  if (!range.start.is_aligned(unit) || (end % unit != 0 && end != node.size())) {
    throw Error(EINVAL, fmt::format("A compressed write ({} bytes at offset {}) must cover whole "
                                    "clusters of {} bytes, or end with the image",
                                    range.length, range.start.bytes(), unit));
  }
}

Task<void> Child::write_zeroes(GuestRange range, ZeroFlags flags) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  const Node::Tracking& tracking = node.tracking();
  const EffectiveLimits& limits = tracking.effective;
  check_may_write(*this, false);
  check_inside_or_growing(*this, range);
  if (range.empty()) co_return;

  const bool whole_units =
      range.start.is_aligned(limits.write_alignment) &&
      (range.end().is_aligned(limits.write_alignment) || range.end().bytes() == node.size());
  const bool serialising = flags.serialising || !whole_units;
  TrackedRequest request(*this, range.align_out(limits.write_alignment), Change::content,
                         serialising ? Serialising::yes : Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  check_inside_or_growing(*this, range);

  if (!node.options().discard_unmap) flags.may_unmap = false;
  const bool flush_after = flags.fua && !tracking.limits.native_fua;
  if (flush_after || node.options().cache_no_flush) flags.fua = false;
  const Target target{node.driver(), limits, node.size()};
  if (tracking.limits.can_zero) {
    co_await write_zeroes_any(target, range, flags);
  } else {
    co_await write_zeroes_as_data(target, range, flags);
  }
  if (flush_after && !node.options().cache_no_flush) co_await node.driver().flush();
}

Task<void> Child::discard(GuestRange range) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  check_may_write(*this, false);
  check_inside(node, range);
  const Node::Tracking& tracking = node.tracking();
  if (range.empty() || !tracking.limits.can_discard || !node.options().discard_unmap) co_return;

  TrackedRequest request(*this, range, Change::content, Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  check_inside(node, range);
  const Target target{node.driver(), tracking.effective, node.size()};
  try {
    co_await discard_any(target, range);
  } catch (const Error& error) {
    if (error.code() != ENOTSUP) throw;  // a discard is a hint
  }
}

Task<Extent> Child::map(GuestRange range, MapMode mode) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  check_inside(node, range);
  TrackedRequest request(*this, GuestRange{}, Change::none, Serialising::no);
  co_return co_await node.driver().map(range, mode);
}

Task<EncodedRun> Child::read_encoded(GuestRange range) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  check_inside(node, range);
  TrackedRequest request(*this, range, Change::none, Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  co_return co_await node.driver().read_encoded(range);
}

Task<bool> Child::write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                                WriteFlags flags) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  const Node::Tracking& tracking = node.tracking();
  check_may_write(*this, flags.unchanged);
  if (extents.empty()) co_return true;
  GuestRange range{offset, 0};
  for (const EncodedExtent& extent : extents) range.length += extent.guest_length;
  // The last cluster of the disk may be a partial one.
  const std::uint64_t unit = tracking.effective.compressed_unit;
  if (!range.ends_by(align_up(node.size(), unit))) throw_outside(node, range);
  if (!tracking.limits.can_compress || !offset.is_aligned(unit)) co_return false;
  TrackedRequest request(*this, range, flags.unchanged ? Change::storage : Change::content,
                         flags.serialising ? Serialising::yes : Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  const bool flush_after =
      flags.fua && !tracking.limits.native_fua && !node.options().cache_no_flush;
  if (flush_after || node.options().cache_no_flush) flags.fua = false;
  const bool stored = co_await node.driver().write_encoded(offset, extents, flags);
  if (stored && flush_after) co_await node.driver().flush();
  co_return stored;
}

Task<std::uint64_t> Child::copy_range(GuestRange range, Child& target, GuestOffset offset,
                                      WriteFlags flags) {
  CopySink sink(target, offset, flags);
  co_return co_await copy_out(range, sink);
}

Task<std::uint64_t> Child::copy_out(GuestRange range, CopySink& sink) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  const EffectiveLimits& limits = node.tracking().effective;
  check_inside(node, range);
  TrackedRequest request(*this, range, Change::none, Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  check_inside(node, range);
  range.length = whole_units(node, range, limits.read_alignment, limits.max_transfer);
  if (range.empty()) co_return 0;
  co_return co_await node.driver().copy_out(range, sink);
}

Task<std::uint64_t> CopySink::take(FileStretch source) {
  const Node& node = target_.node();
  const EffectiveLimits& limits = node.tracking().effective;
  const GuestRange range{offset_, source.length};
  source.length = whole_units(node, range, limits.write_alignment, limits.max_transfer);
  if (source.length == 0) co_return 0;
  const bool taken = co_await target_.copy_in(offset_, source, flags_);
  co_return taken ? source.length : 0;
}

Task<bool> Child::copy_in(GuestOffset offset, FileStretch source, WriteFlags flags) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  const Node::Tracking& tracking = node.tracking();
  const EffectiveLimits& limits = tracking.effective;
  const GuestRange range{offset, source.length};
  check_may_write(*this, flags.unchanged);
  check_inside_or_growing(*this, range);
  if (node.options().detect_zeroes != DetectZeroes::off || flags.compressed) co_return false;
  if (whole_units(node, range, limits.write_alignment, limits.max_transfer) < range.length) {
    co_return false;
  }
  TrackedRequest request(*this, range.align_out(limits.write_alignment),
                         flags.unchanged ? Change::storage : Change::content,
                         flags.serialising ? Serialising::yes : Serialising::no);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  check_inside_or_growing(*this, range);
  const bool flush_after = flags.fua && !tracking.limits.native_fua;
  if (flush_after || node.options().cache_no_flush) flags.fua = false;
  co_await EventPoint(node.driver().reached(Event::pwritev));
  const bool copied = co_await node.driver().copy_in(offset, source, flags);
  co_await EventPoint(node.driver().reached(Event::pwritev_done));
  if (copied && flush_after && !node.options().cache_no_flush) co_await node.driver().flush();
  co_return copied;
}

Task<void> Child::flush() {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  if (node.options().cache_no_flush || node.read_only()) co_return;
  Node::Tracking& tracking = node.tracking();
  // Every change of a protocol comes through an edge; formats have metadata of their own.
  const std::uint64_t generation = tracking.write_generation;
  const bool clean =
      node.type().kind == DriverKind::protocol && tracking.flushed_generation == generation;
  if (clean) co_return;
  TrackedRequest request(*this, GuestRange{}, Change::none, Serialising::no);
  co_await node.driver().flush();
  tracking.flushed_generation = std::max(tracking.flushed_generation, generation);
}

Task<void> Child::truncate(std::uint64_t size, TruncateOptions options) {
  if (Admission(*this)) co_await Admission::wait(*this);
  Node& node = *node_;
  if (node.read_only() || !permissions_.uses.has(Permission::resize)) {
    throw_not_permitted(*this, "resizing");
  }
  if (size > INT64_MAX) {
    throw Error(EFBIG, fmt::format("Size {} is more than the largest possible, {} bytes", size,
                                   std::uint64_t{INT64_MAX}));
  }
  // Excludes every request that would see the end of the node move, padding included.
  const std::uint64_t first =
      align_down(std::min(size, node.size()), node.tracking().effective.write_alignment);
  TrackedRequest request(*this, GuestRange{GuestOffset(first), UINT64_MAX - first}, Change::storage,
                         Serialising::yes);
  while (TrackedRequest* older = request.blocker()) co_await older->finished(request);
  if (!options.allow_shrink && size < node.size()) {
    throw Error(EINVAL, fmt::format("Node '{}' would shrink from {} to {} bytes", node.name(),
                                    node.size(), size));
  }
  const std::unique_ptr<BitmapSet>& bitmaps = node.tracking().bitmaps;
  if (bitmaps) bitmaps->check_resize(size);
  std::exception_ptr failure;
  try {
    co_await node.driver().truncate(size, options);
  } catch (...) {
    failure = std::current_exception();
  }
  if (bitmaps) bitmaps->resize(node.size());  // whether it failed or not
  if (failure) std::rethrow_exception(failure);
}

void tell_threshold(Node& node, GuestRange range) noexcept {
  Node::Tracking& tracking = node.tracking();
  const std::uint64_t threshold = tracking.write_threshold;
  if (range.end().bytes() <= threshold) return;
  tracking.write_threshold = 0;
  if (!node.graph().on_event) return;
  Value::Dict data;
  data.set("node-name", node.name());
  data.set("amount-exceeded", range.end().bytes() - threshold);
  data.set("write-threshold", threshold);
  node.graph().on_event("BLOCK_WRITE_THRESHOLD", std::move(data));
}

}  // namespace vise
