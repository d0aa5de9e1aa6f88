// Giving clusters their space before anything is written there, and noticing that somebody has.
#include <algorithm>

#include "format/qcow2/qcow2.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {

// Clusters that were given space ahead of time look like data, though most may be holes of the
// file. To ask about each would be slow where it is of no use, so that only images are suspected
// whose file takes up clearly less space than their counts say: by a tenth and by two clusters, as
// QEMU has it, whose maps people compare with. Looked at once, since it reads all counts.
Task<bool> Qcow2::looks_preallocated() {
  if (!preallocated_) {
    bool result = false;
    try {
      result = co_await compare_space();
    } catch (const Error&) {
      // Damaged counts, which are not the reader's business.
    }
    preallocated_ = result;
  }
  co_return *preallocated_;
}

Task<bool> Qcow2::compare_space() {
  const DriverInfo below = co_await file_->node().driver().info();
  if (!below.allocated_size) co_return false;
  const std::uint64_t real = *below.allocated_size >> geometry_.cluster_bits;
  const std::uint64_t suspicious = std::max(real * 10 / 9, real + 2);
  const std::uint64_t clusters = divide_up(file_->size(), geometry_.cluster_size);
  if (clusters < suspicious) co_return false;
  const std::uint64_t used = co_await refcounts_.count_used(clusters, suspicious);
  co_return used >= suspicious;
}

/// What the file below is to do with the space: with metadata alone, nothing.
Preallocation Qcow2::for_file(Preallocation preallocation) {
  return preallocation == Preallocation::metadata ? Preallocation::off : preallocation;
}

// The whole clusters of `range`, which reads as zeros (extended L2 entries: or as the backing image
// has it) and does so afterwards.
Task<void> Qcow2::preallocate(GuestRange range, Preallocation preallocation) {
  const std::uint64_t end = geometry_.cluster_of(range.end() + (geometry_.cluster_size - 1));
  const std::uint64_t per_table = std::uint64_t{1} << geometry_.l2_bits;
  for (std::uint64_t first = geometry_.cluster_of(range.start); first < end;) {
    const std::uint64_t count = std::min(end - first, per_table - geometry_.l2_index(first));
    co_await preallocate_stretch(first, count, preallocation);
    co_await commit_if_due();
    first += count;
  }
}

Task<void> Qcow2::preallocate_stretch(std::uint64_t first, std::uint64_t count,
                                      Preallocation preallocation) {
  TicketQueue::Ticket ticket = tickets_.take();
  RangeLocks::Guard lock = locks_.enqueue(first, first + count - 1);
  co_await lock.held();
  co_await ticket.turn();
  const std::vector<Descriptor> old = co_await descriptors(first, count);
  co_await mapping_.make_writable(first, count);
  for (std::uint64_t i = 0; i < count;) {
    if (old[i].has_host && old[i].copied) {
      ++i;
      continue;
    }
    std::uint64_t end = i + 1;
    while (end < count && !(old[end].has_host && old[end].copied)) ++end;
    const HostRange space = co_await preallocated_space(first + i, end - i, preallocation);
    std::vector<Descriptor> fresh;
    for (HostOffset host = space.start; host < space.end(); host += geometry_.cluster_size, ++i) {
      Descriptor d = Descriptor::normal(geometry_, host);
      if (geometry_.extended_l2) {
        // Space for later: subclusters read as before.
        d.allocated = 0;
        d.zero = old[i].zero;
      }
      fresh.push_back(d);
    }
    co_await mapping_.set(first + i - fresh.size(), fresh, Space::Reason::overwritten);
  }
}

// Space for up to `count` clusters that reads as zeros.
Task<HostRange> Qcow2::preallocated_space(std::uint64_t first, std::uint64_t count,
                                          Preallocation preallocation) {
  if (geometry_.data_file) {
    co_return HostRange{HostOffset(geometry_.guest_offset(first).bytes()),
                        count << geometry_.cluster_bits};
  }
  const HostRange space = co_await space_.allocate_clusters(count);
  std::exception_ptr failure;
  try {
    // What is used again may hold anything; behind the end of the file there are zeros.
    const HostOffset end_of_file(file_->size());
    const HostRange reused = space.intersection(HostRange{HostOffset(0), end_of_file.bytes()});
    if (!reused.empty() && preallocation == Preallocation::full) {
      constexpr std::uint64_t step = 1 << 20;
      const Buffer zeroes = Buffer::zeroed(std::min(step, reused.length));
      for (std::uint64_t at = 0; at < reused.length; at += step) {
        const auto part = zeroes.span().first(std::min(step, reused.length - at));
        co_await file_->write(reused.start + at, ConstIoVec(part));
      }
    } else if (!reused.empty()) {
      const ZeroFlags flags{.may_unmap = preallocation == Preallocation::metadata};
      co_await file_->write_zeroes(reused, flags);
    }
    if (space.end() > end_of_file) {
      const TruncateOptions options{.preallocation = for_file(preallocation)};
      co_await file_->truncate(space.end().bytes(), options);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    space_.free_unlinked(space);
    std::rethrow_exception(failure);
  }
  co_return space;
}

}  // namespace vise::qcow2
