// The copy engine: all bulk movement of data goes through it. A copy walks the source's block
// status, keeps a bounded number of chunks in flight, and starts its writes in guest order, so that
// the target's bytes do not depend on threads or on the order of completion.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "copy/control.h"
#include "vise/child.h"
#include "vise/error.h"
#include "vise/task.h"

namespace vise {

struct CopyOptions {
  bool compressed = false;  // whole clusters, compressed by the target
  int level = 0;            // of compression, see WriteFlags
  /// Compressed clusters of the same codec and size are copied as they are stored, without
  /// decoding; not with a level, which asks for compressing anew.
  bool encoded = true;
  /// Compressed clusters stay compressed where they can be copied as they are stored, though all
  /// else is written as it is. Without meaning if `compressed`.
  bool keep_compressed = false;
  /// The host copies from file to file where it can, so that they may share the space. Nobody looks
  /// for zeros in what it copies.
  bool offload = false;
  bool verify = false;          // decodes what is copied as stored, to see that it can be
  bool fua = false;             // each write is stable when it completes
  bool target_is_zero = false;  // the whole target is known to read as zeros
  /// Runs of zeros of at least so many bytes are not written as data (nor at all where the target
  /// reads as zeros). 0: everything is written as data.
  std::uint64_t sparse_size = 4096;
  unsigned chunks_in_flight = 8;  // at least 1; fewer if they would take more than 32 MiB
};

struct CopyProgress {
  std::uint64_t done = 0;        // bytes of the source dealt with, zeros and holes included
  std::uint64_t total = 0;       // bytes of the source
  std::uint64_t data_moved = 0;  // bytes read and written
};

/// What to copy. Everything pointed at must live until copy() completes.
struct CopyRequest {
  std::vector<Child*> sources;  // concatenated, each rounded up to 512 bytes
  const Node* base = nullptr;   // copy only what is held above it; only with one source
  Child* target = nullptr;      // not smaller than the sources together
  CopyOptions options;
  CopyControl* control = nullptr;                        // may be null
  std::function<void(const CopyProgress&)> on_progress;  // after each chunk; may be empty
  /// Called for each sector of the sources (offset in all of them together) that cannot be read and
  /// is taken for zeros then. Empty: what cannot be read ends the copy.
  std::function<void(std::uint64_t offset, const Error& error)> on_unreadable;
  CopyControl::Clock clock;  // of the rate limit
};

/// Copies the sources to the same offsets of the target, which is not flushed. Errors of reading
/// and writing name the offset; nothing is written behind the first chunk that failed, except by
/// chunks that were in flight already.
Task<void> copy(CopyRequest request);

}  // namespace vise
