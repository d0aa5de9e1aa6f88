// What jobs read: the content of a node, layer by layer down to a base, while others may use it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vise/child.h"
#include "vise/graph.h"

namespace vise {

/// Holds the node and every image below it down to a base, so that none of them is written to,
/// resized or closed. close() must be awaited before destruction.
class ChainSource {
 public:
  enum class Kind {
    data,        // bytes
    compressed,  // bytes that read_encoded() may have as they are stored
    zero,        // reads as zeros
    absent       // the base, or whatever is below it, decides
  };
  struct Stretch {
    Kind kind = Kind::data;
    std::uint64_t length = 0;
    std::size_t layer = 0;  // 0: the top image; of data, compressed and zero
  };
  /// What others may write to meanwhile: nothing, the top layer, or every layer (which then stay as
  /// they are for other reasons).
  enum class Sharing { none, top_written, all };

  /// `base`: where the layers end (exclusive); null: nowhere. `user` names the edges in messages.
  static Task<std::unique_ptr<ChainSource>> open(Node& top, Node* base, std::string user,
                                                 Sharing sharing);
  Task<void> close();

  Node& node() const { return layers_.front()->node(); }
  std::uint64_t size() const { return layers_.front()->size(); }
  std::size_t layers() const { return layers_.size(); }
  /// The nodes it holds, top first.
  std::vector<Node*> nodes() const;

  /// The start of `range`, which lies inside size(); not longer.
  Task<Stretch> status(GuestRange range) const;
  Task<void> read(GuestOffset offset, IoVec data) const;
  /// Child::read_encoded() of one layer.
  Task<EncodedRun> read_encoded(GuestRange range, std::size_t layer) const;

 private:
  ChainSource() = default;

  std::vector<std::unique_ptr<Child>> layers_;  // filters between images have none
  std::shared_ptr<Node> base_;
};

}  // namespace vise
