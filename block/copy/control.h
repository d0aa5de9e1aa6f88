// The reins of a running copy.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

#include "copy/rate_limit.h"
#include "vise/sync.h"

namespace vise {

/// The reins of a running copy, for the same event loop.
class CopyControl {
 public:
  CopyControl() = default;
  CopyControl(const CopyControl&) = delete;
  virtual ~CopyControl() = default;

  /// No new chunk is started until resume().
  void pause() { paused_ = true; }
  void resume();
  /// The copy ends with Error(ECANCELED) once the chunks in flight are through.
  void cancel();
  /// Bytes of data per second, 0: no limit.
  void set_rate(std::uint64_t bytes_per_second) { rate_.set(bytes_per_second); }

  bool paused() const { return paused_; }
  bool cancelled() const { return cancelled_; }

  // For the engine. Whoever has other reins overrides both.
  /// Returns at once unless paused; throws Error(ECANCELED) if cancelled by then.
  virtual Task<void> checkpoint();
  /// Books `bytes` of data with the rate limit and waits until they may be moved; ends like
  /// checkpoint(). Of an empty clock the real one and the event loop's timers are used.
  struct Clock {
    std::function<RateLimit::Clock::time_point()> now;
    std::function<Task<void>(std::chrono::nanoseconds)> sleep;
  };
  virtual Task<void> pace(std::uint64_t bytes, const Clock& clock);

 private:
  bool paused_ = false;
  bool cancelled_ = false;
  RateLimit rate_;
  WaitQueue changed_;
};

}  // namespace vise
