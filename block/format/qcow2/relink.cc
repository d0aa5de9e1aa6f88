// Replacing what several tables name, alone or together: clusters that snapshots share, say.
// Nothing becomes more or less shared: what is new gets as many references as what it replaces had,
// and all words that named the old place change where they lie. Runs drained, with nothing dirty in
// memory; the order of writes (| is a flush):
//
//   the new data, its counts raised | all names | the counts of the old places lowered
//
// Between two of the names a power failure leaves some that name the old place and some that name
// the new one. They hold the same, and both count more references than there are, which is a leak.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "format/qcow2/l1_tree.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot_table.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

namespace {
// Their names are written one soon after the other: what has only some of its new names when the
// process is killed is no longer shared, and takes its space twice from then on.
constexpr std::size_t things_at_once = 8;
}  // namespace

// Space and data, stable with their counts. What gets no space stays unchanged. With narrow
// refcounts, host clusters that are full would not allow a snapshot to be applied any more, which
// counts what it holds once more.
Task<void> Qcow2::place_shared(std::span<StoredCluster> clusters) {
  Packer::Receipt receipt;
  std::exception_ptr failure;
  TicketQueue::Ticket ticket = tickets_.take();
  ticket.set_appending(true);
  try {
    co_await ticket.turn();
    for (StoredCluster& cluster : clusters) {
      const bool needs_space = cluster.kind == StoredCluster::Kind::compressed ||
                               cluster.kind == StoredCluster::Kind::moved;
      cluster.leaves_room = true;
      if (needs_space) co_await place(cluster, receipt);
    }
    ticket.pass();
    co_await packer_.written(receipt);
    if (rules_.data_before_names) co_await commit_counts();
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  ticket.pass();
  co_await packer_.settled(receipt);
  for (const StoredCluster& cluster : clusters) {
    if (!cluster.placed) continue;
    space_.free_unlinked({cluster.host, cluster.bytes.size()}, cluster.references);
  }
  std::rethrow_exception(failure);
}

// `dropped` is what the old names referred to. If anything fails, the disk may name the old places
// or the new ones, and both stay counted.
Task<void> Qcow2::relink(std::vector<NewName> names, const References& dropped, Names kind) {
  if (names.empty()) co_return;
  std::ranges::sort(names, {}, [](const NewName& name) {
    return std::pair(name.thing / things_at_once, name.place);
  });
  std::optional<Event> event;
  if (kind == Names::l2_entries) event = Event::l2_update_compressed;
  if (kind == Names::l1_entries) event = Event::l1_update;
  std::exception_ptr failure;
  try {
    co_await write_names(names, event);
    if (rules_.names_before_free) co_await file_->flush();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure || kind != Names::l2_entries) {
    co_await reload_names();
  } else {
    std::vector<std::uint64_t> l1 = mapping_.l1();
    mapping_.replace(std::move(l1));
  }
  if (failure) std::rethrow_exception(failure);
  require_running();
  co_await release_replaced(dropped);
}

// What memory knows of the names becomes what the disk says, before anybody is given the space that
// is free now. If that cannot be read, nothing more is written.
Task<void> Qcow2::reload_names() {
  try {
    Buffer bytes(header_.l1_table().length);
    co_await read_padded(*file_, header_.l1_offset, bytes.span());
    std::vector<std::uint64_t> l1(header_.l1_entries);
    for (std::size_t i = 0; i < l1.size(); ++i) {
      l1[i] = load_be<std::uint64_t>(bytes.data() + i * 8);
    }
    mapping_.replace(std::move(l1));
    const SnapshotTable table =
        co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
    co_await guard_snapshots(table);
    if (header_.bitmaps) co_await reload_bitmap_tables();
  } catch (const Error&) {
    stopped_ = true;
  }
}

// Neighbours in one write, each after `event`.
Task<void> Qcow2::write_names(std::span<const NewName> names, std::optional<Event> event) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < names.size();) {
    const HostOffset start = names[i].place;
    bytes.clear();
    for (; i < names.size() && names[i].place == start + bytes.size(); ++i) {
      bytes.resize(bytes.size() + 8);
      store_be(&bytes[bytes.size() - 8], names[i].word);
    }
    if (event) co_await file_->event(*event);
    co_await file_->write(start, ConstIoVec(std::span<const std::byte>(bytes)));
  }
}

}  // namespace vise::qcow2
