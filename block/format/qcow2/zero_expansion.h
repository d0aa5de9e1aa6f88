// What is to change where L2 entries say "zeros", which version 2 cannot: carried out some entries
// at a time by expand_zeros.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "format/qcow2/l1_tree.h"
#include "vise/types.h"

namespace vise::qcow2 {

struct ZeroExpansion {
  /// An L2 entry, each once.
  struct Change {
    HostOffset place;                  // where it lies
    std::uint64_t word = 0;            // what it becomes …
    std::optional<std::size_t> fresh;  // … or the index of the new cluster that it points to
  };
  /// A new cluster full of zeros.
  struct Fresh {
    std::uint64_t references = 0;  // its count
    bool is_active = false;        // named by a table of the disk
    HostOffset host;
  };

  std::vector<Change> changes;
  std::vector<Fresh> fresh;
  std::vector<HostOffset> kept;  // clusters that these entries alone own: zeros are written there
  References dropped;            // clusters that the entries no longer refer to
};

}  // namespace vise::qcow2
