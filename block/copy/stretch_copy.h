// Copies stretches from a chain of images to a node: what jobs do at once, while they keep others
// from changing them.
#pragma once

#include <cstdint>
#include <vector>

#include "copy/chain_source.h"
#include "copy/copy_error.h"

namespace vise {

/// How stretches are stored in the target.
struct StretchOptions {
  /// Compressed; where the target cannot replace what it has, normally. Stretches should be whole
  /// clusters.
  bool compressed = false;
  /// Clusters of the same codec and size are moved as they are stored.
  bool encoded = false;
  /// Readers of the target see no difference: only write_unchanged is needed.
  bool unchanged = false;
  /// What to do where the source reads as zeros. With `unchanged`, which needs write_unchanged
  /// alone, they are written as data, which compressing targets turn back.
  enum class Zeroes { written, skipped } zeroes = Zeroes::written;
  bool may_unmap = true;  // what becomes zeros may lose its space in the target
};

class Turn;

/// Copies what `source` has of `stretches`, which are in order and may lie past its end, to the
/// same places of `target`. `turn`, if there is one: stores nothing before, and passes it when all
/// is on its way. Throws CopyError.
Task<void> copy_stretches(const ChainSource& source, Child& target,
                          std::vector<GuestRange> stretches, StretchOptions options, Turn* turn);

}  // namespace vise
