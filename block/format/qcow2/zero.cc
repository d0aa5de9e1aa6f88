// Writing zeroes and discarding: only L2 entries change, whole clusters at a time.
#include <algorithm>
#include <cassert>
#include <cerrno>

#include "format/qcow2/qcow2.h"
#include "vise/error.h"

namespace vise::qcow2 {

// The new entry of a cluster, or nothing if it stays as it is. Source: docs/qcow2.md and the
// reference's table of resulting entries.
std::optional<Descriptor> Qcow2::cleared(const Descriptor& old, Clearing clearing) const {
  const bool nothing_there = old.is_unallocated() && !old.has_host;
  const bool may_show_backing = backing_ != nullptr;
  if (clearing == Clearing::discard_fully) {
    if (nothing_there) return std::nullopt;
    return Descriptor::unallocated();
  }
  const bool discards = clearing == Clearing::discard || clearing == Clearing::discard_keep;
  if (discards && nothing_there && !may_show_backing) return std::nullopt;
  if (!geometry_.zero_flag) {
    if (nothing_there && !may_show_backing) return std::nullopt;
    assert(!may_show_backing);  // refused before
    return Descriptor::unallocated();
  }
  Descriptor fresh = Descriptor::zeroes(geometry_);
  // Without permission to unmap, space that is ours alone stays ours, or is shared as before.
  const bool keeps = clearing != Clearing::zero_unmap && clearing != Clearing::discard;
  if (keeps && old.has_host && !old.compressed) {
    fresh.has_host = true;
    fresh.host = old.host;
    fresh.copied = old.copied;
  }
  if (fresh == old) return std::nullopt;
  return fresh;
}

Task<void> Qcow2::clear(GuestRange range, Clearing clearing) {
  require_writable();
  FlightRegister::Flight flight(flights_);
  const GuestOffset disk_end(header_.virtual_size);
  std::uint64_t first = geometry_.cluster_of(range.start.align_up(geometry_.cluster_size));
  const std::uint64_t end = range.end() == disk_end
                                ? geometry_.cluster_of(range.end() + (geometry_.cluster_size - 1))
                                : geometry_.cluster_of(range.end());
  // One L2 table at a time bounds what is held in memory.
  const std::uint64_t per_table = std::uint64_t{1} << geometry_.l2_bits;
  while (first < end) {
    const std::uint64_t count = std::min(end - first, per_table - geometry_.l2_index(first));
    const bool skip = !mapping_.has_table(first) && !backing_ && clearing != Clearing::zero &&
                      clearing != Clearing::zero_unmap && clearing != Clearing::zero_keep;
    if (!skip) {
      co_await clear_stretch(first, count, clearing);
      co_await commit_if_due();
    }
    first += count;
  }
}

Task<void> Qcow2::clear_stretch(std::uint64_t first, std::uint64_t count, Clearing clearing) {
  TicketQueue::Ticket ticket = tickets_.take();
  RangeLocks::Guard lock = locks_.enqueue(first, first + count - 1);
  co_await lock.held();
  const std::vector<Descriptor> old = co_await descriptors(first, count);
  const Space::Reason reason =
      clearing == Clearing::zero ? Space::Reason::overwritten : Space::Reason::discarded;
  std::vector<Descriptor> fresh;
  for (std::uint64_t i = 0; i < count;) {
    fresh.clear();
    const std::uint64_t from = i;
    for (; i < count; ++i) {
      const std::optional<Descriptor> descriptor = cleared(old[i], clearing);
      if (!descriptor) break;
      fresh.push_back(*descriptor);
    }
    if (fresh.empty()) {
      ++i;
      continue;
    }
    if (is_raw_data_file()) co_await zero_data_file(first + from, fresh.size(), clearing);
    co_await ticket.turn();
    co_await mapping_.make_writable(first + from, fresh.size());
    co_await mapping_.set(first + from, fresh, reason);
    if (clearing == Clearing::zero_keep || clearing == Clearing::discard_keep) {
      co_await discard_kept(std::span(old).subspan(from, fresh.size()));
    }
  }
}

// The content of clusters that now read as zeros and are still ours. Whoever reads them meanwhile,
// or after a power failure, may see what was there or zeros. The caller has them locked.
Task<void> Qcow2::discard_kept(std::span<const Descriptor> clusters) {
  if (!settings_.pass_discard_request || data_file_) co_return;
  for (std::size_t i = 0; i < clusters.size(); ++i) {
    const Descriptor& d = clusters[i];
    if (d.compressed || d.allocated == 0 || !d.copied) continue;
    HostRange range{d.host, geometry_.cluster_size};
    while (i + 1 < clusters.size() && !clusters[i + 1].compressed && clusters[i + 1].copied &&
           clusters[i + 1].allocated != 0 && clusters[i + 1].host == range.end()) {
      range.length += geometry_.cluster_size;
      ++i;
    }
    if (range.ends_by(file_->size()) && !guard_.find(range)) co_await file_->discard(range);
  }
}

bool Qcow2::is_raw_data_file() const {
  return data_file_ && (header_.autoclear_features & autoclear::raw_data_file) != 0;
}

// Who reads a raw data file does not know of zero flags.
Task<void> Qcow2::zero_data_file(std::uint64_t first, std::uint64_t count, Clearing clearing) {
  const HostRange range{HostOffset(geometry_.guest_offset(first).bytes()),
                        count << geometry_.cluster_bits};
  const HostRange there = range.intersection({HostOffset(0), data_file_->size()});
  if (there.empty()) co_return;
  co_await data_file_->write_zeroes(there, {.may_unmap = clearing != Clearing::zero});
}

Task<void> Qcow2::write_zeroes(GuestRange range, ZeroFlags flags) {
  // Version 2 has no way to say "zeros" above a backing image, be it open now or only named.
  if (!geometry_.zero_flag && (backing_ || !header_.backing_name.empty())) {
    throw Error(ENOTSUP, "version 2 images have no zero flag");
  }
  Clearing clearing = Clearing::zero;
  if (flags.may_unmap) {
    clearing = settings_.discard_no_unref ? Clearing::zero_keep : Clearing::zero_unmap;
  }
  co_await clear(range, clearing);
}

Task<void> Qcow2::discard(GuestRange range) {
  if (!geometry_.zero_flag && backing_) co_return;
  co_await clear(range, settings_.discard_no_unref ? Clearing::discard_keep : Clearing::discard);
}

}  // namespace vise::qcow2
