// The state of a virtual machine: stored like the disk, in the clusters behind the last L2 table of
// the disk. Snapshots take it along, since it hangs on the same L1 table.
#include <algorithm>
#include <cerrno>

#include <fmt/format.h>

#include "format/qcow2/image_info.h"
#include "format/qcow2/qcow2.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {

GuestRange Qcow2::vm_state_range(std::uint64_t offset, std::uint64_t length) const {
  const std::uint64_t most = max_l1_bytes / 8 * header_.l2_coverage();
  const std::uint64_t start = vm_state_offset(header_);
  const std::uint64_t room = most - std::min(most, start);
  if (offset > room || length > room - offset) {
    throw Error(EFBIG, fmt::format("{} bytes at {} of the VM state lie beyond the {} that the "
                                   "format can address",
                                   length, offset, room));
  }
  return {GuestOffset(start + offset), length};
}

// No backing image has anything there, however long it is.
Task<void> Qcow2::read_vm_state(GuestOffset offset, IoVec data) {
  while (!data.empty()) {
    Run run = co_await find_run({offset, data.size()}, Mapping::Use::keep);
    const IoVec part = data.first(run.length);
    const std::uint64_t length = run.length;
    if (run.kind == Extent::Kind::backing) {
      part.fill(std::byte{0});
    } else {
      co_await read_run(std::move(run), offset, part);
    }
    offset += length;
    data = data.slice(length);
  }
}

Task<void> Qcow2::load_vm_state(std::uint64_t offset, IoVec data) {
  require_sound();
  const GuestRange range = vm_state_range(offset, data.size());
  FlightRegister::Flight flight(flights_);
  co_await read_vm_state(range.start, data);
}

// Whole clusters, so that none has to be filled up with what a backing image has there.
Task<void> Qcow2::save_vm_state(std::uint64_t offset, ConstIoVec data) {
  require_writable();
  if (geometry_.data_file) {
    throw Error(ENOTSUP, "images with an external data file cannot hold VM state");
  }
  const GuestRange range = vm_state_range(offset, data.size());
  FlightRegister::Flight flight(flights_);
  const std::uint64_t entries = divide_up(range.end().bytes(), header_.l2_coverage());
  if (entries > header_.l1_entries) co_await grow_l1(entries);
  const std::uint64_t most = std::max<std::uint64_t>(1u << 20, geometry_.cluster_size);
  for (GuestOffset at = range.start; at < range.end();) {
    const GuestOffset first = at.align_down(geometry_.cluster_size);
    const GuestOffset end = std::min(range.end(), first + most);
    Buffer clusters(end.align_up(geometry_.cluster_size) - first);
    const bool partial = at != first || !end.is_aligned(geometry_.cluster_size);
    if (partial) co_await read_vm_state(first, IoVec(clusters.span()));
    const ConstIoVec part = data.slice(at - range.start, end - at);
    part.copy_to(clusters.span().subspan(at - first, part.size()));
    co_await write_allocating(first, ConstIoVec(clusters.span()));
    co_await commit_if_due();
    at = end;
  }
}

}  // namespace vise::qcow2
