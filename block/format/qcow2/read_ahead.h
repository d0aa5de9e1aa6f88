// Notices readers that go through compressed clusters from front to back in small steps, and says
// which clusters to decode before they are asked for.
#pragma once

#include <array>
#include <cstdint>

#include "vise/types.h"

namespace vise::qcow2 {

class ReadAhead {
 public:
  /// Guest clusters [first, first + count).
  struct Clusters {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    bool operator==(const Clusters&) const = default;
  };

  /// `most` clusters ahead of each reader.
  ReadAhead(unsigned cluster_bits, std::uint64_t most) : cluster_bits_(cluster_bits), most_(most) {}

  /// `part` of one cluster is being read. Returns what is to be decoded now; each cluster once as
  /// the reader goes on.
  Clusters next(GuestRange part);

 private:
  struct Stream {
    GuestOffset next;         // where its next read begins
    std::uint64_t ahead = 0;  // clusters before this one have been asked for
    unsigned reads = 0;       // one behind the other
    std::uint64_t used = 0;   // the higher, the more recently
  };

  unsigned cluster_bits_;
  std::uint64_t most_;
  std::uint64_t clock_ = 0;
  std::array<Stream, 8> streams_;  // readers told apart
};

}  // namespace vise::qcow2
