// What the driver offers beyond reading and writing: information, checks, and its entry for the
// driver table.
#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "format/formats.h"
#include "format/qcow2/bitmap_directory.h"
#include "format/qcow2/check.h"
#include "format/qcow2/create.h"
#include "format/qcow2/image_info.h"
#include "format/qcow2/measure.h"
#include "format/qcow2/qcow2.h"
#include "format/qcow2/snapshot_table.h"
#include "vise/error.h"

namespace vise {

namespace qcow2 {

Task<DriverInfo> Qcow2::info() {
  SnapshotTable snapshots =
      co_await SnapshotTable::read(*file_, header_, SnapshotTable::Mode::strict);
  std::vector<BitmapEntry> bitmaps;
  try {
    std::vector<BitmapEntry> found = co_await read_bitmap_directory(*file_, header_);
    bitmaps = std::move(found);
  } catch (const Error& error) {
    if (error.code() != EINVAL) throw;
    if (!bitmaps_lost_)
      warn(fmt::format("The directory of dirty bitmaps is damaged: {}", error.message()));
  }
  co_return image_info(header_, snapshots, bitmaps);
}

Task<CheckResult> Qcow2::check(CheckRequest request) {
  if (request.repair != Repair::none) require_writable();
  co_return co_await check_image(*file_, header_, std::move(request));
}

// Counts may be too low after a crash with postponed refcount updates: nothing may be written
// before they have been made right.
Task<void> Qcow2::repair_dirty() {
  CheckRequest request;
  request.repair = Repair::all;
  const CheckResult result = co_await check_image(*file_, header_, std::move(request));
  if (result.corruptions > 0 || result.check_errors > 0) {
    throw Error(EIO, "not everything could be repaired");
  }
  co_await mapping_.load().context("L1 table");
  co_await refcounts_.load().context("refcount table");
}

}  // namespace qcow2

const DriverType qcow2_driver = {
    .name = "qcow2",
    .kind = DriverKind::format,
    .open = qcow2::Qcow2::open,
    .probe = qcow2::probe,
    .create = qcow2::create,
    .create_options = qcow2::create_options,
    .supports_backing = true,
    .measure = qcow2::measure,
};

}  // namespace vise
