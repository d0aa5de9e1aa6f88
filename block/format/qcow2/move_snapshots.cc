// Moving what snapshots hold, alone or together with the disk, as a plan (move_plan.h) wants it:
// clusters of data, compressed ones, L2 tables, L1 tables, the snapshot table. All that names them
// changes where it lies (relink.cc), since nothing becomes more or less shared. Runs drained, some
// megabytes at a time.
#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "format/qcow2/l1_tree.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/move_plan.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/relocation.h"
#include "format/qcow2/shared_tables.h"
#include "format/qcow2/snapshot_table.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/context.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t most_at_once = 8u << 20;    // bytes in one step
constexpr std::uint64_t most_entries = 256u << 10;  // looked at in one step, while it is drained
}  // namespace

// First, from position 0 on, what entries of L2 tables name; then, one position per L1 index, these
// tables.
Task<void> Qcow2::move_snapshots(SnapshotStep& step) {
  step.read = step.done = 0;
  if (header_.snapshot_count == 0 || !move_plan_) co_return;
  co_await begin_operation();
  SharedTables tables = co_await shared_tables();
  const bool moves_tables = move_plan_->boundary() != UINT64_MAX;
  step.end = tables.clusters() + (moves_tables ? tables.l1_entries() : 0);
  std::vector<Relocation> found;
  const bool are_data = step.next < tables.clusters();
  if (are_data) {
    co_await find_relocations(tables, step, found);
  } else {
    co_await find_table_relocations(tables, step, found);
  }
  if (found.empty()) co_return;
  for (const Relocation& relocation : found) step.read += relocation.old.length;
  const std::uint64_t moved =
      co_await relocate(found, are_data ? Names::l2_entries : Names::l1_entries);
  step.done = moved;
}

// From step.next on, until it is enough.
Task<void> Qcow2::find_relocations(SharedTables& tables, SnapshotStep& step,
                                   std::vector<Relocation>& found) {
  std::uint64_t bytes = 0;
  std::uint64_t looked = 0;
  SharedWindow window;
  while (step.next < tables.clusters() && looked < most_entries && bytes < most_at_once) {
    const bool readable = co_await next_window(tables, step, found.size(), window);
    if (!readable) co_return;
    const bool known = co_await are_all_uses(window);
    if (!known) {
      step.next += window.count;
      ++looked;
      continue;
    }
    for (std::uint64_t i = 0; i < window.count && bytes < most_at_once; ++i) {
      const std::size_t first = found.size();
      add_relocations(window, i, found);
      ++step.next;
      for (std::size_t r = first; r < found.size();) {
        const bool complete = co_await has_all_references(found[r]);
        if (complete) {
          bytes += found[r++].old.length;
        } else {
          found.erase(found.begin() + static_cast<std::ptrdiff_t>(r));
        }
      }
    }
    looked += window.count * window.tables.size();
  }
}

// Whether snapshots have any of the tables, and no L1 entries name them but those at this index:
// for others the same entries would count once more.
Task<bool> Qcow2::are_all_uses(const SharedWindow& window) {
  if (!window.in_snapshot) co_return false;
  for (const SharedTable& table : window.tables) {
    const std::uint64_t uses =
        co_await refcounts_.get(table.offset.bytes() >> geometry_.cluster_bits);
    if (uses != table.times) co_return false;
  }
  co_return true;
}

// What the entries for one guest cluster name, as far as it is to move.
void Qcow2::add_relocations(const SharedWindow& window, std::uint64_t i,
                            std::vector<Relocation>& found) const {
  struct Use {
    HostRange old;
    bool compressed;
    std::size_t table;
    std::uint64_t word;
  };
  const auto thing = [](const Use& use) {
    return std::tuple(use.old.start, use.old.length, use.compressed);
  };
  std::vector<Use> uses;
  for (std::size_t t = 0; t < window.tables.size(); ++t) {
    const std::span<const std::byte> entry = window.entry(t, i);
    const auto word = load_be<std::uint64_t>(entry.data());
    if (word == 0) continue;
    const std::uint64_t bitmap =
        geometry_.extended_l2 ? load_be<std::uint64_t>(entry.data() + 8) : 0;
    const Descriptor d =
        guard_.telling([&] { return Descriptor::decode(word, bitmap, geometry_); });
    if (!move_plan_->moves(d)) continue;
    const HostRange old{d.host, d.compressed ? d.stored_length : geometry_.cluster_size};
    uses.push_back({old, d.compressed, t, word});
  }
  std::ranges::sort(uses, {}, thing);
  for (std::size_t u = 0; u < uses.size(); ++u) {
    const bool is_new = u == 0 || thing(uses[u]) != thing(uses[u - 1]);
    if (is_new) {
      found.emplace_back();
      found.back().references = 0;
    }
    Relocation& relocation = found.back();
    relocation.references += window.tables[uses[u].table].times;
    relocation.old = uses[u].old;
    relocation.compressed = uses[u].compressed;
    relocation.names.push_back({window.place(uses[u].table, i), uses[u].word});
  }
}

// Of compressed clusters it does not matter who else refers to the same host clusters: theirs are
// counts of their own.
Task<bool> Qcow2::has_all_references(const Relocation& relocation) {
  if (relocation.compressed) co_return true;
  const std::uint64_t uses =
      co_await refcounts_.get(relocation.old.start.bytes() >> geometry_.cluster_bits);
  co_return uses == relocation.references;
}

// Those of the disk alone are for move_l2_tables().
Task<void> Qcow2::find_table_relocations(SharedTables& tables, SnapshotStep& step,
                                         std::vector<Relocation>& found) {
  for (std::uint64_t bytes = 0, looked = 0;
       step.next < step.end && bytes < most_at_once && looked < most_entries;) {
    const std::uint64_t index = step.next++ - tables.clusters();
    co_await tables.load(index);
    const std::vector<SharedTable> here = guard_.telling([&] { return tables.at(index); });
    for (const SharedTable& table : here) {
      const HostRange place{table.offset, geometry_.cluster_size};
      const bool is_own = table.is_active && table.times == 1;
      if (is_own || !move_plan_->behind(place)) continue;
      const std::uint64_t uses =
          co_await refcounts_.get(table.offset.bytes() >> geometry_.cluster_bits);
      if (uses != table.times) continue;
      Relocation relocation;
      relocation.old = place;
      relocation.references = table.times;
      for (const SharedTables::Name& name : tables.names(index, table.offset)) {
        relocation.names.push_back({name.place, name.word});
      }
      bytes += place.length;
      found.push_back(std::move(relocation));
    }
    looked += here.size() + 1;
  }
}

// Returns the bytes that have moved: all for which there was space.
Task<std::uint64_t> Qcow2::relocate(std::span<const Relocation> found, Names kind) {
  std::vector<Buffer> bytes(found.size());
  co_await load_relocations(found, bytes);
  std::vector<StoredCluster> stored(found.size());
  const std::function<void(std::size_t)> prepare = [&](std::size_t i) {
    const Relocation& relocation = found[i];
    Descriptor old;
    old.has_host = true;
    old.host = relocation.old.start;
    old.compressed = relocation.compressed;
    old.stored_length = relocation.old.length;
    stored[i] = moved_cluster(old, bytes[i].span());
    stored[i].references = relocation.references;
    const bool is_anywhere = relocation.compressed || relocation.anywhere;
    if (!is_anywhere) stored[i].below = relocation.old.start;
  };
  co_await context_.workers().for_each(found.size(), prepare);
  co_await place_shared(stored);

  std::vector<NewName> names;
  References dropped;
  std::uint64_t moved = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const StoredCluster& cluster = stored[i];
    if (cluster.kind == StoredCluster::Kind::unchanged) continue;
    for (NewName name : found[i].names) {
      if (found[i].compressed) {
        const auto fresh = Descriptor::compressed_at(cluster.host, cluster.bytes.size());
        name.word = fresh.encode(geometry_).word;
      } else {
        name.word += cluster.host.bytes() - found[i].old.start.bytes();
      }
      name.thing = i;
      names.push_back(name);
    }
    dropped.add(found[i].old, geometry_.cluster_bits,
                static_cast<std::uint32_t>(found[i].references));
    moved += cluster.bytes.size();
  }
  co_await relink(std::move(names), dropped, kind);
  co_return moved;
}

Task<void> Qcow2::load_relocations(std::span<const Relocation> found, std::span<Buffer> bytes) {
  constexpr std::size_t most_reads = 64;
  TaskScope scope;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (scope.running() >= most_reads) co_await scope.join();
    bytes[i] = Buffer(found[i].old.length);
    scope.spawn(read_padded(*file_, found[i].old.start, bytes[i].span()));
  }
  co_await scope.join();
}

// --- L1 tables and the snapshot table -----------------------------------------------------------

Task<void> Qcow2::move_snapshot_tables() {
  if (header_.snapshot_count == 0) co_return;
  co_await move_l1_tables_of_snapshots();
  co_await begin_operation();
  co_await move_snapshot_table();
}

// Each is named by one word, in the snapshot table.
Task<void> Qcow2::move_l1_tables_of_snapshots() {
  const SnapshotTable table =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  for (std::size_t next = 0; next < table.snapshots.size();) {
    std::vector<Relocation> found;
    for (std::uint64_t bytes = 0; next < table.snapshots.size() && bytes < most_at_once; ++next) {
      const Snapshot& snapshot = table.snapshots[next];
      snapshot.check_l1(header_);
      const HostRange place = snapshot.l1_table().align_out(geometry_.cluster_size);
      const bool moves = co_await is_movable(place);
      if (!moves) continue;
      Relocation relocation;
      relocation.old = place;
      relocation.names.push_back(
          {header_.snapshots_offset + snapshot.position, snapshot.l1_offset.bytes()});
      bytes += place.length;
      found.push_back(std::move(relocation));
    }
    if (!found.empty()) co_await relocate(found, Names::others);
  }
}

Task<void> Qcow2::move_snapshot_table() {
  const SnapshotTable table =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  const HostRange place{header_.snapshots_offset, table.length};
  const std::function<Task<void>(HostOffset)> name = [this, &table, place](HostOffset at) {
    return switch_snapshot_table(table, {at, place.align_out(geometry_.cluster_size).length});
  };
  co_await move_table_of_header(place, name);
}

}  // namespace vise::qcow2
