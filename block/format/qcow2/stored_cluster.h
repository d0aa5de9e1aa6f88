// What a compressed write makes of each guest cluster, on its way to the file.
#pragma once

#include <cstdint>
#include <span>

#include "format/qcow2/qcow2.h"

namespace vise::qcow2 {

/// What becomes of one guest cluster.
struct Qcow2::StoredCluster {
  /// moved: the host cluster as it is, to be found elsewhere; or several that stay in a row.
  enum class Kind { compressed, normal, moved, zero, unchanged };
  Kind kind = Kind::normal;
  std::span<const std::byte> bytes;  // what goes to the host; empty for zero and unchanged
  HostOffset host;                   // once it has space
  HostOffset below{UINT64_MAX};      // stays unchanged if there is no space before this
  std::uint64_t references = 1;      // entries that will name it
  bool leaves_room = false;  // compressed: the host cluster can count all that it has once more
  Descriptor old;            // moved: its entry
  bool placed = false;
};

}  // namespace vise::qcow2
