// Moving what guest clusters are stored in, as it is stored: copied to its new place, then linked
// like any other write. Each round of moves follows a plan (move_plan.h).
#include <algorithm>
#include <vector>

#include "codec/codec.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/stored_cluster.h"
#include "format/qcow2/walk.h"
#include "vise/context.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {

GuestOffset Qcow2::end_of_moves() const {
  return geometry_.guest_offset(mapping_.l1().size() << geometry_.l2_bits);
}

Task<bool> Qcow2::plan_moves() {
  require_writable();
  co_await finish_freeing();
  FlightRegister::Flight flight(flights_);
  auto plan =
      std::make_unique<MovePlan>(geometry_, divide_up(file_->size(), geometry_.cluster_size));
  co_await refcounts_.copy_counts(plan->counts);
  co_await count_active_references(*plan);
  const bool more = plan->choose(move_plan_.get());
  if (more) space_.stop_packing_from(plan->boundary());
  move_plan_ = std::move(plan);
  co_return more;
}

Task<void> Qcow2::count_active_references(MovePlan& plan) {
  const std::uint64_t per_table = std::uint64_t{1} << geometry_.l2_bits;
  const std::uint64_t end = mapping_.l1().size() * per_table;
  for (std::uint64_t first = 0; first < end;) {
    const Mapping::Stretch stretch = co_await mapping_.get_stretch(first, end - first);
    for (const Descriptor& descriptor : stretch.descriptors) {
      if (descriptor.compressed) plan.add_compressed(descriptor);
    }
    first += stretch.count;
  }
}

Task<GuestRange> Qcow2::find_movable(GuestRange range, std::uint64_t most) {
  const auto chosen = [this](const Descriptor& d) { return move_plan_ && move_plan_->moves(d); };
  FlightRegister::Flight flight(flights_);
  co_return co_await find_clusters(range, most, chosen);
}

Task<Buffer> Qcow2::read_stored(Descriptor cluster) {
  Buffer bytes(cluster.compressed ? cluster.stored_length : geometry_.cluster_size);
  co_await read_padded(*file_, cluster.host, bytes.span());
  co_return bytes;
}

namespace {

Task<void> read_into(Task<Buffer> reading, Buffer& bytes) {
  Buffer read = co_await std::move(reading);
  bytes = std::move(read);
}

}  // namespace

// Reads those that are to move; of the others `bytes` stay empty.
Task<void> Qcow2::load_movable(std::span<const Descriptor> old, std::span<Buffer> bytes) {
  constexpr std::size_t most_at_once = 64;
  TaskScope scope;
  for (std::size_t i = 0; i < old.size(); ++i) {
    if (!move_plan_->moves(old[i])) continue;
    if (scope.running() >= most_at_once) co_await scope.join();
    scope.spawn(read_into(read_stored(old[i]), bytes[i]));
  }
  co_await scope.join();
}

Task<std::uint64_t> Qcow2::move_range(GuestRange range) {
  require_writable();
  if (!move_plan_) co_return 0;
  FlightRegister::Flight flight(flights_);
  const std::uint64_t first = geometry_.cluster_of(range.start);
  const std::uint64_t count = divide_up(range.length, geometry_.cluster_size);
  TicketQueue::Ticket ticket = tickets_.take();
  RangeLocks::Guard lock = locks_.enqueue(first, first + count - 1);
  co_await lock.held();
  ticket.set_appending(true);
  const std::vector<Descriptor> old = co_await descriptors(first, count);
  std::vector<Buffer> bytes(count);
  co_await load_movable(old, bytes);

  std::vector<StoredCluster> clusters(count);
  const Codec codec = header_.compression;
  const std::function<void(std::size_t)> prepare = [&](std::size_t i) {
    StoredCluster& cluster = clusters[i];
    cluster.kind = StoredCluster::Kind::unchanged;
    if (bytes[i].empty()) return;
    if (move_plan_->behind(old[i])) cluster.below = old[i].host;
    cluster.bytes = bytes[i].span();
    if (!old[i].compressed) {
      cluster.kind = StoredCluster::Kind::moved;
      cluster.old = old[i];
      return;
    }
    // The entry gives the length in sectors only; what is damaged is moved as it is.
    Buffer decoded(geometry_.cluster_size);
    const codec::DecodeResult result = codec::decode(codec, bytes[i].span(), decoded.span());
    if (result.ok) cluster.bytes = cluster.bytes.first(result.stored_length);
    if (cluster.bytes.size() < geometry_.cluster_size) {
      cluster.kind = StoredCluster::Kind::compressed;
    }
  };
  co_await context_.workers().for_each(count, prepare);
  co_await store(first, clusters, ticket);
  std::uint64_t moved = 0;
  for (const StoredCluster& cluster : clusters) {
    if (cluster.kind != StoredCluster::Kind::unchanged) moved += cluster.bytes.size();
  }
  lock.release();
  co_await commit_if_due();
  co_return moved;
}

}  // namespace vise::qcow2
