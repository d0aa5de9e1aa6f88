// Memory of coroutine frames: per-thread free lists by size class.
#include "vise/task.h"

#include <array>
#include <cstdlib>
#include <utility>

#include "util/sanitizer.h"

namespace vise::task_detail {

namespace {

constexpr std::size_t granule = 64;        // bytes between size classes
constexpr std::size_t classes = 32;        // frames up to 2 KiB are kept
constexpr std::size_t keep_at_most = 256;  // frames per class

constexpr bool pooled = !under_address_sanitizer;

struct FreeFrame {
  FreeFrame* next;
};

struct FramePool {
  std::array<FreeFrame*, classes> heads{};
  std::array<std::size_t, classes> counts{};
  bool closed = false;  // the thread is ending; what is freed from now on is not kept
};

// Per thread, not per context: frames are allocated where no context is at hand, and a frame may
// be freed on another thread than it came from. Trivial, so that it can still be used by what is
// destroyed after PoolCloser.
thread_local constinit FramePool frame_pool;

struct PoolCloser {
  ~PoolCloser() {
    frame_pool.closed = true;
    for (FreeFrame*& frame : frame_pool.heads) {
      while (frame != nullptr) std::free(std::exchange(frame, frame->next));
    }
  }
};
thread_local PoolCloser pool_closer;

}  // namespace

void* allocate_frame(std::size_t size) {
  const std::size_t index = (size + granule - 1) / granule;
  if (pooled && index < classes) {
    FreeFrame*& head = frame_pool.heads[index];
    if (head != nullptr) {
      --frame_pool.counts[index];
      return std::exchange(head, head->next);
    }
    size = index * granule;
  }
  void* frame = std::malloc(size);
  if (frame == nullptr) throw std::bad_alloc();
  return frame;
}

void free_frame(void* frame, std::size_t size) noexcept {
  const std::size_t index = (size + granule - 1) / granule;
  if (pooled && index < classes && frame_pool.counts[index] < keep_at_most && !frame_pool.closed) {
    // The first frame kept makes the thread free them all at its end.
    if (frame_pool.counts[index] == 0) (void)&pool_closer;
    auto* free = static_cast<FreeFrame*>(frame);
    free->next = std::exchange(frame_pool.heads[index], free);
    ++frame_pool.counts[index];
    return;
  }
  std::free(frame);
}

}  // namespace vise::task_detail
