// Compressing what snapshots hold, alone or together with the disk. A host cluster is compressed
// once, and all L2 entries that refer to it change where they lie (relink.cc), since nothing
// becomes more or less shared. Runs drained, some megabytes at a time.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "format/qcow2/compress_job.h"
#include "format/qcow2/l1_tree.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/shared_clusters.h"
#include "format/qcow2/shared_tables.h"
#include "format/qcow2/snapshot_table.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/context.h"
#include "vise/error.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t most_at_once = 8u << 20;    // bytes of data in one step
constexpr std::uint64_t most_entries = 256u << 10;  // looked at in one step, while it is drained
}  // namespace

Task<void> Qcow2::compress_snapshots(SnapshotStep& step, int level) {
  step.read = step.done = 0;
  if (header_.snapshot_count == 0) co_return;
  co_await begin_operation();
  SharedTables tables = co_await shared_tables();
  step.end = tables.clusters();
  std::vector<SharedCluster> found;
  co_await find_shared(tables, step, found);
  if (found.empty()) co_return;
  step.read = found.size() * geometry_.cluster_size;
  const std::uint64_t compressed = co_await compress_shared(found, level);
  step.done = compressed;
}

Task<SharedTables> Qcow2::shared_tables() {
  const SnapshotTable table =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  SharedTables tables(*file_, header_, geometry_, mapping_.l1());
  for (const Snapshot& snapshot : table.snapshots) tables.add(snapshot);
  co_return tables;
}

// What lies there is going to be changed where it lies.
Task<SharedWindow> Qcow2::window_to_change(SharedTables& tables, std::uint64_t cluster,
                                           WantedTables wanted) {
  const std::uint64_t index = geometry_.l1_index(cluster);
  co_await tables.load(index);
  guard_.telling([&] { return tables.at(index); });
  SharedWindow window = co_await tables.window(cluster, wanted);
  if (window.entries.empty()) co_return window;
  for (const SharedTable& table : window.tables) require_own_place(table.offset);
  co_return window;
}

void Qcow2::require_own_place(HostOffset table) const {
  const HostRange range{table, geometry_.cluster_size};
  if (!refcounts_.overlaps(range) && !range.overlaps(header_.l1_table())) return;
  throw Error(EIO, fmt::format("the image is corrupt: the L2 table at {:#x} lies in other metadata",
                               table.bytes()));
}

// The window at step.next. False if it cannot be read, but something was found before it: that
// comes first, and the error is met again. Else step.next is behind it when that is thrown.
Task<bool> Qcow2::next_window(SharedTables& tables, SnapshotStep& step, std::size_t found,
                              SharedWindow& window) {
  std::exception_ptr failure;
  try {
    SharedWindow there = co_await window_to_change(tables, step.next, WantedTables::shared);
    window = std::move(there);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return true;
  if (found > 0) co_return false;
  step.next += tables.window_length(step.next);
  std::rethrow_exception(failure);
}

// From step.next on, until it is enough.
Task<void> Qcow2::find_shared(SharedTables& tables, SnapshotStep& step,
                              std::vector<SharedCluster>& found) {
  const std::uint64_t enough = std::max<std::uint64_t>(1, most_at_once >> geometry_.cluster_bits);
  SharedEntries entries(geometry_);
  SharedWindow window;
  for (std::uint64_t looked = 0; step.next < step.end && looked < most_entries;) {
    const bool readable = co_await next_window(tables, step, found.size(), window);
    if (!readable) co_return;
    if (!window.in_snapshot) {
      step.next += window.count;
      ++looked;
      continue;
    }
    for (std::uint64_t i = 0; i < window.count; ++i) {
      for (std::size_t t = 0; t < window.tables.size(); ++t) {
        guard_.telling(
            [&] { entries.add(window.tables[t], window.place(t, i), window.entry(t, i)); });
      }
      ++step.next;
      for (SharedCluster& cluster : entries.take()) {
        // More references than that: something else refers to it that we do not see here.
        const std::uint64_t uses =
            co_await refcounts_.get(cluster.host.bytes() >> geometry_.cluster_bits);
        if (uses == cluster.references) found.push_back(std::move(cluster));
      }
      if (found.size() >= enough) co_return;
    }
    looked += window.count * window.tables.size();
  }
}

// Returns how many bytes are compressed now.
Task<std::uint64_t> Qcow2::compress_shared(std::span<const SharedCluster> found, int level) {
  Buffer data(found.size() << geometry_.cluster_bits);
  co_await load_shared(found, data);
  CompressJob job(geometry_, header_.compression, level, geometry_.zero_flag,
                  ConstIoVec(data.span()));
  const std::function<void(std::size_t)> compress = [&](std::size_t i) {
    StoredCluster& cluster = job.clusters[i];
    job.compress(i);
    // What does not shrink stays where it is.
    if (cluster.kind == StoredCluster::Kind::normal) cluster.kind = StoredCluster::Kind::unchanged;
    cluster.references = found[i].references;
  };
  co_await context_.workers().for_each(found.size(), compress);
  co_await place_shared(job.clusters);

  std::vector<NewName> names;
  References dropped;
  std::uint64_t compressed = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const StoredCluster& cluster = job.clusters[i];
    if (cluster.kind == StoredCluster::Kind::unchanged) continue;
    const Descriptor fresh = cluster.kind == StoredCluster::Kind::zero
                                 ? Descriptor::zeroes(geometry_)
                                 : Descriptor::compressed_at(cluster.host, cluster.bytes.size());
    const Descriptor::Words words = fresh.encode(geometry_);
    for (const HostOffset place : found[i].entries) {
      names.push_back({place, words.word, i});
      if (geometry_.extended_l2) names.push_back({place + 8, words.bitmap, i});
    }
    dropped.add(found[i].host.bytes() >> geometry_.cluster_bits,
                static_cast<std::uint32_t>(found[i].references));
    compressed += geometry_.cluster_size;
  }
  co_await relink(std::move(names), dropped, Names::l2_entries);
  co_return compressed;
}

Task<void> Qcow2::load_shared(std::span<const SharedCluster> found, Buffer& data) {
  constexpr std::size_t most_reads = 64;
  TaskScope scope;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (scope.running() >= most_reads) co_await scope.join();
    const std::span<std::byte> part =
        data.span().subspan(i << geometry_.cluster_bits, geometry_.cluster_size);
    scope.spawn(read_padded(*file_, found[i].host, part));
  }
  co_await scope.join();
  for (std::size_t i = 0; i < found.size(); ++i) {
    for (unsigned s = 0; s < geometry_.subclusters; ++s) {
      if ((found[i].zero >> s & 1) == 0) continue;
      std::memset(data.data() + (i << geometry_.cluster_bits) + s * geometry_.subcluster_size, 0,
                  geometry_.subcluster_size);
    }
  }
}

}  // namespace vise::qcow2
