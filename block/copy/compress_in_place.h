// Compressing an image in place, while it is in use or not: walks over what the image holds
// uncompressed, has its driver compress it stretch by stretch, and then gives the space back.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

#include "copy/copy.h"
#include "vise/child.h"
#include "vise/error.h"

namespace vise {

struct InPlaceOptions {
  int level = 0;         // of compression, see WriteFlags
  bool compact = false;  // move clusters together and to the front, so that the file gets shorter
  unsigned chunks_in_flight = 8;  // at least 1; fewer if they would take more than 32 MiB
};

struct InPlaceProgress {
  double fraction = 0;           // of all the work, 0 to 1
  std::uint64_t compressed = 0;  // bytes of the disk that were uncompressed and no longer are
  std::uint64_t moved = 0;       // bytes of the file that were moved
  std::uint64_t left_out = 0;    // bytes, about, that stay as they are since there were errors
};

/// What an error keeps from being done: the compressing or moving of one place, which can be left
/// out, or what all the rest depends on.
enum class InPlaceStep { of_a_place, of_the_whole };
enum class AfterError { try_again, leave_out };

/// What to compress. Everything pointed at must live until the task completes.
struct InPlaceRequest {
  /// An edge to the node of the format itself, with the permission to write what readers cannot
  /// see (write_unchanged). Others may use the node meanwhile.
  Child* image = nullptr;
  InPlaceOptions options;
  CopyControl* control = nullptr;  // pause, cancel and rate (of what is read); may be null
  CopyControl::Clock clock;        // of the rate limit
  /// Held while the node is drained for a step that has it all to itself; taken before. May be
  /// null: then nothing but requests reaches the node.
  AsyncMutex* turn = nullptr;
  std::function<void(const InPlaceProgress&)> on_progress;  // after each chunk; may be empty
  /// Asked about errors that may pass; throws, or says what to do. Empty: they are thrown. Others
  /// may be asked about while it waits. A place that is left out is tried once more at the end.
  std::function<Task<AfterError>(Error error, InPlaceStep step)> on_error;
};

/// Compresses in place, flushed when it completes. Whatever stops it, the image is intact, and what
/// is done stays done: the next run goes on from there. Throws Error(ENOTSUP) if the format cannot
/// do that, EINVAL for a level that its codec does not have.
Task<InPlaceProgress> compress_in_place(InPlaceRequest request);

}  // namespace vise
