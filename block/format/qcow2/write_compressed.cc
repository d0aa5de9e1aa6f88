// Compressed writes: the clusters of a request are compressed on all cores, given space in the
// order of the requests, gathered into large host writes, and linked when those are done.
#include <algorithm>
#include <cassert>
#include <cerrno>

#include "format/qcow2/compress_job.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/context.h"
#include "vise/error.h"

namespace vise::qcow2 {

Task<void> Qcow2::write_compressed(GuestOffset offset, ConstIoVec data, int level) {
  if (geometry_.data_file) {
    throw Error(ENOTSUP, "images with an external data file cannot hold compressed clusters");
  }
  const bool to_the_end = offset.bytes() + data.size() == header_.virtual_size;
  if (!offset.is_aligned(geometry_.cluster_size) ||
      (geometry_.offset_in_cluster(data.size()) != 0 && !to_the_end)) {
    throw Error(EINVAL, "compressed writes must cover whole clusters");
  }
  const std::uint64_t first = geometry_.cluster_of(offset);
  TicketQueue::Ticket ticket = tickets_.take();
  // In version 2 a backing image shows where there is no cluster, be it open now or only named.
  const bool alone = !backing_ && header_.backing_name.empty();
  CompressJob job(geometry_, header_.compression, level, geometry_.zero_flag || alone, data);
  RangeLocks::Guard lock = locks_.enqueue(first, first + job.clusters.size() - 1);
  co_await lock.held();
  ticket.set_appending(true);
  co_await context_.workers().for_each(job.clusters.size(),
                                       [&job](std::size_t i) { job.compress(i); });
  co_await store(first, job.clusters, ticket);
}

// Space in the order of the tickets, then data, then entries.
Task<void> Qcow2::store(std::uint64_t first, std::span<StoredCluster> clusters,
                        TicketQueue::Ticket& ticket) {
  Packer::Receipt receipt;
  std::exception_ptr failure;
  try {
    co_await ticket.turn();
    hole_scan_.start_if_due();
    co_await place(first, clusters, receipt);
    ticket.pass();
    co_await packer_.written(receipt);
    std::vector<Descriptor> fresh;
    for (std::size_t i = 0; i < clusters.size();) {
      // Runs of clusters that change.
      fresh.clear();
      const std::size_t from = i;
      for (; i < clusters.size() && clusters[i].kind != StoredCluster::Kind::unchanged; ++i) {
        const StoredCluster& cluster = clusters[i];
        switch (cluster.kind) {
          case StoredCluster::Kind::compressed:
            fresh.push_back(Descriptor::compressed_at(cluster.host, cluster.bytes.size()));
            break;
          case StoredCluster::Kind::moved:
            fresh.push_back(cluster.old);
            fresh.back().host = cluster.host;
            break;
          case StoredCluster::Kind::normal:
            fresh.push_back(Descriptor::normal(geometry_, cluster.host));
            break;
          default:
            fresh.push_back(geometry_.zero_flag ? Descriptor::zeroes(geometry_)
                                                : Descriptor::unallocated());
        }
      }
      if (!fresh.empty()) {
        co_await file_->event(Event::l2_update_compressed);
        co_await mapping_.set(first + from, fresh, Space::Reason::overwritten);
        for (std::size_t linked = from; linked < i; ++linked) clusters[linked].placed = false;
      }
      while (i < clusters.size() && clusters[i].kind == StoredCluster::Kind::unchanged) ++i;
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    // What was gathered is still going to be written: not before that is over may others write
    // there.
    ticket.pass();
    co_await packer_.settled(receipt);
    for (const StoredCluster& cluster : clusters) {
      if (cluster.placed) space_.free_unlinked({cluster.host, cluster.bytes.size()});
    }
    std::rethrow_exception(failure);
  }
}

// Packed bytes first, whole clusters behind them: between each other they would leave holes, and
// the packed ones could neither be written nor read together.
Task<void> Qcow2::place(std::uint64_t first, std::span<StoredCluster> clusters,
                        Packer::Receipt& receipt) {
  const std::vector<Descriptor> old = co_await descriptors(first, clusters.size());
  for (const bool packed : {true, false}) {
    for (std::size_t i = 0; i < clusters.size(); ++i) {
      StoredCluster& cluster = clusters[i];
      const bool is_packed = cluster.kind == StoredCluster::Kind::compressed;
      if (is_packed != packed || cluster.kind == StoredCluster::Kind::unchanged) continue;
      if (cluster.kind == StoredCluster::Kind::zero && reads_as_zeros(first + i, old[i])) {
        cluster.kind = StoredCluster::Kind::unchanged;
        continue;
      }
      co_await mapping_.make_writable(first + i, 1);
      if (cluster.kind != StoredCluster::Kind::zero) co_await place(cluster, receipt);
    }
  }
}

// Nothing there and nothing below, or said so. How long a backing image is that is not open, nobody
// knows.
bool Qcow2::reads_as_zeros(std::uint64_t number, const Descriptor& cluster) const {
  if (cluster.is_zero(geometry_)) return true;
  const bool below = backing_ ? geometry_.guest_offset(number).bytes() < backing_->size()
                              : !header_.backing_name.empty();
  return cluster.is_unallocated() && !cluster.has_host && !below;
}

Task<void> Qcow2::place(StoredCluster& cluster, Packer::Receipt& receipt) {
  if (cluster.kind == StoredCluster::Kind::compressed) {
    const std::uint64_t most = cluster.leaves_room ? refcounts_.max_count() / 2 : UINT64_MAX;
    const Space::Sharing sharing{cluster.references, most};
    cluster.host = co_await space_.allocate_bytes(cluster.bytes.size(), sharing);
  } else if (cluster.bytes.size() <= geometry_.cluster_size) {
    cluster.host = co_await space_.allocate_cluster(cluster.references);
  } else {
    // A table. It is never moved onto itself.
    const HostRange space =
        co_await take_run_below(cluster.below, cluster.bytes.size() >> geometry_.cluster_bits);
    if (space.empty()) {
      cluster.kind = StoredCluster::Kind::unchanged;
      co_return;
    }
    cluster.host = space.start;
  }
  if (cluster.host >= cluster.below) {
    space_.free_unlinked({cluster.host, cluster.bytes.size()}, cluster.references);
    cluster.kind = StoredCluster::Kind::unchanged;
    co_return;
  }
  cluster.placed = true;
  packer_.append(cluster.host, cluster.bytes, receipt, behind(cluster));
}

Packer::Behind Qcow2::behind(const StoredCluster& cluster) const {
  // Units that are larger than clusters hold those of others.
  const bool is_last = space_.cursor() == cluster.host + cluster.bytes.size() &&
                       packer_.unit() <= geometry_.cluster_size;
  return is_last ? Packer::Behind::nothing : Packer::Behind::unknown;
}

}  // namespace vise::qcow2
