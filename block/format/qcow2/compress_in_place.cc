// Compressing what the image holds where it lies. A stretch of guest clusters is read, compressed
// and stored like a compressed write, under the same locks and in the same order (commit.cc), so
// that a crash shows each cluster as it was or compressed. What they occupied is used again for the
// next ones, which is why this needs little free space; what is left at the end goes to the host.
#include <algorithm>
#include <cerrno>
#include <vector>

#include "format/qcow2/check_in_use.h"
#include "format/qcow2/compress_job.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/walk.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t most_discarded_at_once = 64u << 20;  // bytes
}

Task<void> Qcow2::begin_compressing() {
  require_writable();
  if (geometry_.data_file) {
    throw Error(ENOTSUP, "images with an external data file cannot hold compressed clusters");
  }
  if (refcounts_.max_count() < 2) {
    throw Error(ENOTSUP,
                "compressed clusters cannot share host clusters in an image with "
                "refcounts of 1 bit")
        .with_hint("'amend -o refcount_bits=16' makes them wider");
  }
  co_await begin_operation();
  move_plan_.reset();
  check_in_use_ = std::make_unique<CheckInUse>(*file_, header_);
  space_.note_changes(&check_in_use_->changed);
}

// Ours alone, and complete without the backing image; or space that holds nothing.
bool Qcow2::is_uncompressed(const Descriptor& d) const {
  if (d.compressed || !d.has_host || !d.copied) return false;
  return d.allocated == 0 || (d.allocated | d.zero) == geometry_.all_subclusters;
}

Task<GuestRange> Qcow2::find_uncompressed(GuestRange range, std::uint64_t most) {
  const auto chosen = [this](std::uint64_t, const Descriptor& d) { return is_uncompressed(d); };
  FlightRegister::Flight flight(flights_);
  co_return co_await find_clusters(range, most, chosen);
}

Task<std::uint64_t> Qcow2::compress_range(GuestRange range, int level) {
  require_writable();
  FlightRegister::Flight flight(flights_);
  const std::uint64_t cluster_size = geometry_.cluster_size;
  const std::uint64_t first = geometry_.cluster_of(range.start);
  range.length = std::min(range.length, header_.virtual_size - range.start.bytes());
  const std::uint64_t count = divide_up(range.length, cluster_size);
  TicketQueue::Ticket ticket = tickets_.take();
  RangeLocks::Guard lock = locks_.enqueue(first, first + count - 1);
  co_await lock.held();
  ticket.set_appending(true);
  const std::vector<Descriptor> old = co_await descriptors(first, count);
  const auto has_data = [&](std::size_t i) {
    return is_uncompressed(old[i]) && old[i].allocated != 0;
  };

  Buffer data(range.length);
  for (std::uint64_t i = 0; i < count;) {
    const std::uint64_t from = i;
    while (i < count && has_data(i)) ++i;
    if (i == from) {
      ++i;
      continue;
    }
    const std::uint64_t start = from * cluster_size;
    const IoVec part(data.data() + start, std::min(i * cluster_size, range.length) - start);
    co_await read_range(range.start + start, part);
  }
  // In version 2 a backing image shows where there is no cluster, be it open now or only named.
  const bool alone = !backing_ && header_.backing_name.empty();
  CompressJob job(geometry_, header_.compression, level, geometry_.zero_flag || alone,
                  ConstIoVec(data.span()));
  std::uint64_t compressed = 0;
  const std::function<void(std::size_t)> compress = [&](std::size_t i) {
    StoredCluster& cluster = job.clusters[i];
    if (has_data(i)) job.compress(i);
    // What does not shrink stays where it is.
    if (cluster.kind == StoredCluster::Kind::normal) cluster.kind = StoredCluster::Kind::unchanged;
  };
  co_await context_.workers().for_each(count, compress);
  for (std::uint64_t i = 0; i < count; ++i) {
    if (job.clusters[i].kind == StoredCluster::Kind::unchanged) continue;
    compressed += std::min(cluster_size, range.length - i * cluster_size);
  }
  co_await drop_unused_space(first, old, ticket);
  co_await store(first, job.clusters, ticket);
  lock.release();
  co_await commit_if_due();
  co_return compressed;
}

// Preallocated zeros, and with subclusters space that nothing was written to, need no space.
Task<void> Qcow2::drop_unused_space(std::uint64_t first, std::span<const Descriptor> old,
                                    TicketQueue::Ticket& ticket) {
  for (std::size_t i = 0; i < old.size(); ++i) {
    if (!is_uncompressed(old[i]) || old[i].allocated != 0) continue;
    Descriptor fresh;
    fresh.zero = old[i].zero;
    co_await ticket.turn();
    co_await mapping_.make_writable(first + i, 1);
    co_await mapping_.set(first + i, std::span(&fresh, 1), Space::Reason::overwritten);
  }
}

// What has been replaced may be used again as far as nobody is reading it any more.
Task<void> Qcow2::finish_freeing() {
  co_await commit();
  TicketQueue::Ticket ticket = tickets_.take();
  co_await ticket.turn();
  co_await space_.reclaim();
  // Commits write counts too.
  AsyncMutex::Guard guard = co_await commit_mutex_.lock();
  co_await commit_counts();
}

// Free clusters from `first` on; the caller has the turn.
Task<std::uint64_t> Qcow2::free_run(std::uint64_t first, std::uint64_t end) {
  std::uint64_t cluster = first;
  for (; cluster < end; ++cluster) {
    const std::uint64_t count = co_await refcounts_.get(cluster);
    if (count != 0) break;
  }
  co_return cluster - first;
}

// Whoever has the turn knows that nobody takes what is free meanwhile.
Task<void> Qcow2::release_free_space() {
  require_writable();
  co_await finish_freeing();
  {
    TicketQueue::Ticket ticket = tickets_.take();
    co_await ticket.turn();
    co_await cut_free_end();
    space_.forget_free_from(divide_up(file_->size(), geometry_.cluster_size));
  }
  const std::uint64_t most = divide_up(most_discarded_at_once, geometry_.cluster_size);
  std::uint64_t end = divide_up(file_->size(), geometry_.cluster_size);
  for (std::uint64_t cluster = 1; cluster < end;) {
    TicketQueue::Ticket ticket = tickets_.take();
    co_await ticket.turn();
    end = std::min(end, file_->size() >> geometry_.cluster_bits);
    for (std::uint64_t looked = 0; cluster < end && looked < most;) {
      const std::uint64_t count = co_await free_run(cluster, std::min(end, cluster + most));
      if (count > 0) {
        co_await file_->discard(HostRange{HostOffset(cluster << geometry_.cluster_bits),
                                          count << geometry_.cluster_bits});
      }
      cluster += count + 1;
      looked += count + 1;
    }
  }
}

}  // namespace vise::qcow2
