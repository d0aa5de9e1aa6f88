// Moving what guest clusters are stored in, as it is stored: copied to its new place, then linked
// like any other write. Each round of moves follows a plan (move_plan.h).
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "codec/codec.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/shared_tables.h"
#include "format/qcow2/snapshot_table.h"
#include "format/qcow2/stored_cluster.h"
#include "format/qcow2/walk.h"
#include "vise/context.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

GuestOffset Qcow2::end_of_moves() const {
  return geometry_.guest_offset(mapping_.l1().size() << geometry_.l2_bits);
}

Task<bool> Qcow2::plan_moves() {
  require_writable();
  co_await finish_freeing();
  FlightRegister::Flight flight(flights_);
  std::optional<MovePlan::Outcome> before;
  if (move_plan_) before = move_plan_->outcome();
  move_plan_.reset();  // it has counts of all clusters, and so will the next one
  // What snapshots hold leaves room for as many references again, see relink.cc.
  const std::uint64_t most = refcounts_.max_count() / (header_.snapshot_count > 0 ? 2 : 1);
  auto plan =
      std::make_unique<MovePlan>(geometry_, divide_up(file_->size(), geometry_.cluster_size),
                                 std::max<std::uint64_t>(most, 1));
  co_await refcounts_.copy_counts(plan->counts);
  co_await add_tables(*plan);
  const CompressedUse add = [&plan](const Descriptor& descriptor, std::uint64_t times) {
    plan->add_compressed(descriptor, times);
  };
  co_await for_each_compressed(*plan, add);
  if (plan->has_room(before)) {
    const CompressedUse weigh = [&plan](const Descriptor& descriptor, std::uint64_t) {
      plan->weigh(descriptor);
    };
    co_await for_each_compressed(*plan, weigh);
  }
  const bool more = plan->choose();
  if (more) space_.stop_packing_from(plan->boundary());
  move_plan_ = std::move(plan);
  co_return more;
}

Task<void> Qcow2::add_tables(MovePlan& plan) {
  const SnapshotTable snapshots =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  plan.add_table({header_.snapshots_offset, snapshots.length});
  for (const Snapshot& snapshot : snapshots.snapshots) plan.add_table(snapshot.l1_table());
  plan.add_table(header_.l1_table());
  plan.add_table(header_.refcount_table());
  if (header_.bitmaps) plan.add_table(header_.bitmaps->directory);
  for (const StoredBitmap& bitmap : stored_bitmaps_) plan.add_table(bitmap.entry.table);
}

// What clients change meanwhile is missed or counted twice: then something stays for the next
// round, or moves without need.
Task<void> Qcow2::for_each_compressed(MovePlan& plan, const CompressedUse& use) {
  SharedTables tables = co_await shared_tables();
  for (std::uint64_t cluster = 0; cluster < tables.clusters();) {
    SharedWindow window = co_await tables.window(cluster, WantedTables::all);
    if (window.in_snapshot) plan.add_shared_index(geometry_.l1_index(cluster));
    if (!window.entries.empty()) {
      overlay_cached(window);
      use_compressed(window, use);
    }
    cluster += window.count;
  }
}

// The tables of the disk as they are in memory; those that snapshots have, too, never differ there.
void Qcow2::overlay_cached(SharedWindow& window) {
  const std::uint64_t slice_size = mapping_.cache().slice_size();
  for (std::size_t t = 0; t < window.tables.size(); ++t) {
    if (!window.tables[t].is_active) continue;
    const HostRange there{window.place(t, 0), window.count * window.entry_size};
    for (HostOffset at = there.start.align_down(slice_size); at < there.end(); at += slice_size) {
      const TableCache::Ref slice = mapping_.cache().try_get(at, TableCache::Use::once);
      if (!slice) continue;
      const HostRange part = there.intersection({at, slice_size});
      std::memcpy(&window.entries[t * there.length + (part.start - there.start)],
                  slice.data() + (part.start - at), part.length);
    }
  }
}

// Each compressed cluster once, however many tables have the same entry for it.
void Qcow2::use_compressed(const SharedWindow& window, const CompressedUse& use) const {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> words;  // and how often
  for (std::uint64_t i = 0; i < window.count; ++i) {
    words.clear();
    for (std::size_t t = 0; t < window.tables.size(); ++t) {
      const auto word = load_be<std::uint64_t>(window.entry(t, i).data());
      if ((word & entry_compressed) != 0) words.emplace_back(word, window.tables[t].times);
    }
    std::ranges::sort(words);
    for (std::size_t w = 0; w < words.size();) {
      const std::uint64_t word = words[w].first;
      std::uint64_t times = 0;
      for (; w < words.size() && words[w].first == word; ++w) times += words[w].second;
      use(Descriptor::decode(word, 0, geometry_), times);
    }
  }
}

Task<GuestRange> Qcow2::find_movable(GuestRange range, std::uint64_t most) {
  const auto chosen = [this](std::uint64_t cluster, const Descriptor& d) {
    return move_plan_ && move_plan_->moves_alone(geometry_.l1_index(cluster), d);
  };
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
Task<void> Qcow2::load_movable(std::uint64_t first, std::span<const Descriptor> old,
                               std::span<Buffer> bytes) {
  constexpr std::size_t most_at_once = 64;
  TaskScope scope;
  for (std::size_t i = 0; i < old.size(); ++i) {
    if (!move_plan_->moves_alone(geometry_.l1_index(first + i), old[i])) continue;
    if (scope.running() >= most_at_once) co_await scope.join();
    scope.spawn(read_into(read_stored(old[i]), bytes[i]));
  }
  co_await scope.join();
}

// How `bytes`, what is stored for `old`, is to be stored elsewhere.
Qcow2::StoredCluster Qcow2::moved_cluster(const Descriptor& old, std::span<std::byte> bytes) const {
  StoredCluster cluster;
  cluster.kind = StoredCluster::Kind::unchanged;
  if (bytes.empty()) return cluster;
  if (move_plan_ && move_plan_->behind(old)) cluster.below = old.host;
  cluster.bytes = bytes;
  if (!old.compressed) {
    cluster.kind = StoredCluster::Kind::moved;
    cluster.old = old;
    return cluster;
  }
  // The entry gives the length in sectors only; what is damaged is moved as it is.
  Buffer decoded(geometry_.cluster_size);
  const codec::DecodeResult result = codec::decode(header_.compression, bytes, decoded.span());
  if (result.ok) cluster.bytes = bytes.first(result.stored_length);
  if (cluster.bytes.size() < geometry_.cluster_size) {
    cluster.kind = StoredCluster::Kind::compressed;
  }
  return cluster;
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
  co_await load_movable(first, old, bytes);

  std::vector<StoredCluster> clusters(count);
  const std::function<void(std::size_t)> prepare = [&](std::size_t i) {
    clusters[i] = moved_cluster(old[i], bytes[i].span());
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
