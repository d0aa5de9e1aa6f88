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
#include "format/qcow2/snapshot_table.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/context.h"
#include "vise/error.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t most_at_once = 8u << 20;    // bytes of data in one step
constexpr std::uint64_t entries_at_once = 512;      // of each L2 table, looked at together
constexpr std::uint64_t most_entries = 256u << 10;  // looked at in one step, while it is drained
}  // namespace

Task<void> Qcow2::compress_snapshots(SnapshotStep& step, int level) {
  step.read = step.compressed = 0;
  if (header_.snapshot_count == 0) co_return;
  co_await begin_operation();
  const SnapshotTable table =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  SharedTables tables(geometry_);
  tables.add_active(mapping_.l1());
  for (const Snapshot& snapshot : table.snapshots) {
    std::vector<std::uint64_t> l1 = co_await snapshot.read_l1(*file_, header_);
    tables.add_snapshot(std::move(l1));
  }
  step.end = tables.clusters();
  std::vector<SharedCluster> found;
  co_await find_shared(tables, step, found);
  if (found.empty()) co_return;
  step.read = found.size() * geometry_.cluster_size;
  const std::uint64_t compressed = co_await compress_shared(found, level);
  step.compressed = compressed;
}

// From step.next on, until it is enough. What was found before entries that cannot be read comes
// first: the error is met again.
Task<void> Qcow2::find_shared(SharedTables& tables, SnapshotStep& step,
                              std::vector<SharedCluster>& found) {
  const std::uint64_t per_table = std::uint64_t{1} << geometry_.l2_bits;
  const std::uint64_t enough = std::max<std::uint64_t>(1, most_at_once >> geometry_.cluster_bits);
  SharedEntries entries(geometry_);
  std::vector<std::byte> window;  // the same entries of all tables
  for (std::uint64_t looked = 0; step.next < step.end && looked < most_entries;) {
    const std::uint64_t index = geometry_.l2_index(step.next);
    const std::vector<SharedTable> here =
        guard_.telling([&] { return tables.at(geometry_.l1_index(step.next)); });
    // Where no snapshot has any, nothing is shared.
    if (std::ranges::all_of(here, &SharedTable::is_active_alone)) {
      step.next += per_table - index;
      ++looked;
      continue;
    }
    const std::uint64_t count = std::min(entries_at_once, per_table - index);
    const std::uint64_t length = count * geometry_.l2_entry_size;
    std::exception_ptr failure;
    try {
      co_await read_entries(here, index, count, window);
    } catch (...) {
      failure = std::current_exception();
    }
    if (failure) {
      if (!found.empty()) co_return;
      step.next += count;
      std::rethrow_exception(failure);
    }
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t at = i * geometry_.l2_entry_size;
      for (std::size_t t = 0; t < here.size(); ++t) {
        const HostOffset place = here[t].offset + index * geometry_.l2_entry_size + at;
        const auto entry = std::span(window).subspan(t * length + at, geometry_.l2_entry_size);
        guard_.telling([&] { entries.add(here[t], place, entry); });
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
    looked += count * here.size();
  }
}

// `count` entries of each table, from `index` on.
Task<void> Qcow2::read_entries(std::span<const SharedTable> tables, std::uint64_t index,
                               std::uint64_t count, std::vector<std::byte>& window) {
  const std::uint64_t length = count * geometry_.l2_entry_size;
  Buffer bytes(length);
  window.clear();
  for (const SharedTable& table : tables) {
    require_own_place(table.offset);
    const HostOffset start = table.offset + index * geometry_.l2_entry_size;
    co_await read_zero_extended(*file_, start, bytes.span());
    window.insert(window.end(), bytes.data(), bytes.data() + length);
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
      names.push_back({place, words.word});
      if (geometry_.extended_l2) names.push_back({place + 8, words.bitmap});
    }
    dropped.add(found[i].host.bytes() >> geometry_.cluster_bits,
                static_cast<std::uint32_t>(found[i].references));
    compressed += geometry_.cluster_size;
  }
  co_await relink(std::move(names), dropped, Event::l2_update_compressed);
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
