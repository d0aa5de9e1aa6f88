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
#include <utility>
#include <vector>

#include "format/qcow2/l1_tree.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot_table.h"
#include "format/qcow2/stored_cluster.h"
#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::qcow2 {

// Space and data, stable with their counts. What gets no space stays unchanged.
Task<void> Qcow2::place_shared(std::span<StoredCluster> clusters) {
  Packer::Receipt receipt;
  std::exception_ptr failure;
  TicketQueue::Ticket ticket = tickets_.take();
  ticket.set_appending(true);
  try {
    co_await ticket.turn();
    for (StoredCluster& cluster : clusters) {
      if (cluster.kind == StoredCluster::Kind::compressed) co_await place(cluster, receipt);
    }
    ticket.pass();
    co_await packer_.written(receipt);
    co_await commit_counts();
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

// `dropped` is what the old names referred to.
Task<void> Qcow2::relink(std::vector<NewName> names, const References& dropped, Event event) {
  std::exception_ptr failure;
  try {
    co_await write_names(std::move(names), event);
    co_await file_->flush();
  } catch (...) {
    failure = std::current_exception();
  }
  // After a failure the disk may name the old places or the new ones: both stay counted.
  std::vector<std::uint64_t> l1 = mapping_.l1();
  mapping_.replace(std::move(l1));
  if (failure) std::rethrow_exception(failure);
  co_await release_replaced(dropped);
}

// Neighbours in one write.
Task<void> Qcow2::write_names(std::vector<NewName> names, Event event) {
  std::ranges::sort(names, {}, &NewName::place);
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i < names.size();) {
    const HostOffset start = names[i].place;
    bytes.clear();
    for (; i < names.size() && names[i].place == start + bytes.size(); ++i) {
      bytes.resize(bytes.size() + 8);
      store_be(&bytes[bytes.size() - 8], names[i].word);
    }
    co_await file_->event(event);
    co_await file_->write(start, ConstIoVec(std::span<const std::byte>(bytes)));
  }
}

}  // namespace vise::qcow2
