// How large a new image would become (qcow2.md 13.7).
#pragma once

#include <cstdint>

#include "format/qcow2/create_options.h"
#include "vise/image_operations.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// The sizes of an image with the geometry of `header` (CreateOptions::header()) that stores
/// `data_bytes` of data, whole clusters.
MeasureResult measure_sizes(const Header& header, std::uint64_t data_bytes);

/// Bytes that one persistent bitmap and its directory entry need in an image of `header`'s
/// geometry, the directory's own clusters not included.
struct BitmapSize {
  std::uint64_t clusters_bytes = 0;   // data and table, whole clusters
  std::uint64_t directory_bytes = 0;  // the entry
};
BitmapSize measure_bitmap(const Header& header, std::uint64_t granularity,
                          std::uint64_t name_length);

/// DriverType::measure.
Task<MeasureResult> measure(MeasureRequest& request);

}  // namespace vise::qcow2
