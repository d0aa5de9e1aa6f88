// What a compressed write makes of each guest cluster, on its way to the file.
#pragma once

#include <span>

#include "format/qcow2/qcow2.h"

namespace vise::qcow2 {

/// What becomes of one guest cluster.
struct Qcow2::StoredCluster {
  enum class Kind { compressed, normal, zero, unchanged };
  Kind kind = Kind::normal;
  std::span<const std::byte> bytes;  // what goes to the host; empty for zero and unchanged
  HostOffset host;                   // once it has space
  bool placed = false;
};

}  // namespace vise::qcow2
