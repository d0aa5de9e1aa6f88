// What `info` tells about a qcow2 image (qcow2.md 13.4).
#pragma once

#include <vector>

#include "format/qcow2/bitmap_directory.h"
#include "format/qcow2/header.h"
#include "format/qcow2/snapshot_table.h"
#include "vise/driver.h"

namespace vise::qcow2 {

/// Everything of DriverInfo that the metadata says.
DriverInfo image_info(const Header& header, const SnapshotTable& snapshots,
                      const std::vector<BitmapEntry>& bitmaps);

/// The first guest offset past the disk that an L1 entry of its own covers: where the machine
/// state of a snapshot starts.
std::uint64_t vm_state_offset(const Header& header);

}  // namespace vise::qcow2
