// What only the disk refers to, but what is counted as if it were shared: left behind where a power
// failure came between the names of one thing that the disk shared with a snapshot (relink.cc).
// Lowering such a count is not enough. The entry must then say that the cluster is its own, and a
// power failure between the two would leave what `check` calls an error. So it is copied to a
// place of its own, which its entry names in one write; what is left at the old one is only a leak.
// Runs drained.
#include <utility>
#include <vector>

#include "format/qcow2/descriptor.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/relocation.h"
#include "format/qcow2/shared_tables.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {
constexpr std::uint64_t most_at_once = 8u << 20;  // bytes

// How often entries for guest cluster first + `i` of the window name the cluster at `host`.
std::uint64_t times_named(const SharedWindow& window, std::uint64_t i, HostOffset host) {
  std::uint64_t times = 0;
  for (std::size_t t = 0; t < window.tables.size(); ++t) {
    const auto word = load_be<std::uint64_t>(window.entry(t, i).data());
    if ((word & entry_compressed) != 0) continue;
    if (HostOffset(word & entry_offset_mask) == host) times += window.tables[t].times;
  }
  return times;
}
}  // namespace

Task<void> Qcow2::renew_unshared() {
  SharedTables tables = co_await shared_tables();
  co_await renew_unshared_tables(tables);
  co_await begin_operation();
  co_await renew_unshared_clusters(tables);
  co_await begin_operation();
}

// One name less may be too few to take from the count: whoever else refers to it keeps it.
Task<void> Qcow2::renew(std::vector<Relocation>& found, HostOffset old, HostOffset name,
                        std::uint64_t word, Names kind) {
  const std::uint64_t uses = co_await refcounts_.get(old.bytes() >> geometry_.cluster_bits);
  if (uses > 1) {
    Relocation& relocation = found.emplace_back();
    relocation.old = {old, geometry_.cluster_size};
    relocation.anywhere = true;
    relocation.names.push_back({name, word | entry_copied});
  }
  if (found.size() << geometry_.cluster_bits < most_at_once) co_return;
  co_await relocate(found, kind);
  co_await begin_operation();
  found.clear();
}

Task<void> Qcow2::renew_unshared_tables(SharedTables& tables) {
  std::vector<Relocation> found;
  for (std::uint64_t i = 0; i < mapping_.l1().size(); ++i) {
    const std::uint64_t word = mapping_.l1()[i];
    const HostOffset table(word & entry_offset_mask);
    if ((word & entry_copied) != 0 || table.bytes() == 0) continue;
    co_await tables.load(i);
    const std::vector<SharedTables::Name> names = tables.names(i, table);
    if (names.size() > 1) continue;
    co_await renew(found, table, header_.l1_offset + i * 8, word, Names::l1_entries);
  }
  if (!found.empty()) co_await relocate(found, Names::l1_entries);
}

Task<void> Qcow2::renew_unshared_clusters(SharedTables& tables) {
  std::vector<Relocation> found;
  const std::uint64_t end = std::uint64_t{mapping_.l1().size()} << geometry_.l2_bits;
  for (std::uint64_t cluster = 0; cluster < end;) {
    const SharedWindow window = co_await tables.window(cluster, WantedTables::all);
    cluster += window.count;
    for (std::size_t t = 0; t < window.tables.size(); ++t) {
      if (!window.tables[t].is_active) continue;
      // Not even by L1 entries at another index, for which its entries would count once more.
      const std::uint64_t uses =
          co_await refcounts_.get(window.tables[t].offset.bytes() >> geometry_.cluster_bits);
      if (uses > 1) continue;
      for (std::uint64_t i = 0; i < window.count; ++i) {
        const auto word = load_be<std::uint64_t>(window.entry(t, i).data());
        const HostOffset host(word & entry_offset_mask);
        if ((word & (entry_compressed | entry_copied)) != 0 || host.bytes() == 0) continue;
        if (times_named(window, i, host) > 1) continue;
        co_await renew(found, host, window.place(t, i), word, Names::l2_entries);
      }
    }
  }
  if (!found.empty()) co_await relocate(found, Names::l2_entries);
}

}  // namespace vise::qcow2
