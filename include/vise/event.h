// What a driver tells others of while it works: the moments that tests may hook into (faults and
// pauses come with them, block/filter/blkdebug.cc), and images found corrupt.
#pragma once

#include <coroutine>
#include <cstdint>
#include <optional>
#include <string>

#include "vise/types.h"

namespace vise {

class Node;

/// A driver has found metadata that contradict themselves, or a write that would have hit some; the
/// write has not been done. What QMP tells as BLOCK_IMAGE_CORRUPTED.
struct ImageCorruption {
  const Node& node;
  std::string message;
  std::optional<HostRange> range;  // what would have been hit, where that is the matter
  bool fatal = true;  // the image has been marked corrupt, the node takes no more requests
};

/// Named as the outside world names them, in the order of the QAPI enum BlkdebugEvent.

enum class Event : std::uint8_t {
  l1_update,
  l1_grow_alloc_table,
  l1_grow_write_table,
  l1_grow_activate_table,
  l2_load,
  l2_update,
  l2_update_compressed,
  l2_alloc_cow_read,
  l2_alloc_write,
  read_aio,
  read_backing_aio,
  read_compressed,
  write_aio,
  write_compressed,
  vmstate_load,
  vmstate_save,
  cow_read,
  cow_write,
  reftable_load,
  reftable_grow,
  reftable_update,
  refblock_load,
  refblock_update,
  refblock_update_part,
  refblock_alloc,
  refblock_alloc_hookup,
  refblock_alloc_write,
  refblock_alloc_write_blocks,
  refblock_alloc_write_table,
  refblock_alloc_switch_table,
  cluster_alloc,
  cluster_alloc_bytes,
  cluster_free,
  flush_to_os,
  flush_to_disk,
  pwritev_rmw_head,
  pwritev_rmw_after_head,
  pwritev_rmw_tail,
  pwritev_rmw_after_tail,
  pwritev,
  pwritev_zero,
  pwritev_done,
  empty_image_prepare,
  l1_shrink_write_table,
  l1_shrink_free_l2_clusters,
  cor_write,
  cluster_alloc_space,
  none,
};

/// Where a request waits that Driver::reached() holds back. Belongs to the driver that returned it,
/// which schedules `waiter` on the loop when the request may go on.
struct EventPause {
  std::coroutine_handle<> waiter;
};

/// Awaiting it goes on at once unless the request is held back.
class EventPoint {
 public:
  explicit EventPoint(EventPause* pause) : pause_(pause) {}
  bool await_ready() const noexcept { return pause_ == nullptr; }
  void await_suspend(std::coroutine_handle<> waiter) const noexcept { pause_->waiter = waiter; }
  void await_resume() const noexcept {}

 private:
  EventPause* pause_;  // null: none
};

}  // namespace vise
