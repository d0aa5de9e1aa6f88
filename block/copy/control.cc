#include "copy/control.h"

#include <algorithm>
#include <cerrno>

#include "vise/error.h"
#include "vise/event_loop.h"

namespace vise {

void CopyControl::resume() {
  paused_ = false;
  changed_.wake_all();
}

void CopyControl::cancel() {
  cancelled_ = true;
  changed_.wake_all();
}

Task<void> CopyControl::checkpoint() {
  while (paused_ && !cancelled_) co_await changed_.wait();
  if (cancelled_) throw Error::system_error(ECANCELED);
}

Task<void> CopyControl::pace(std::uint64_t bytes, const Clock& clock) {
  if (bytes == 0) co_return;
  const auto now = clock.now ? clock.now() : RateLimit::Clock::now();
  auto wait = rate_.reserve(now, bytes);
  // In short steps, so that cancelling does not wait for them.
  constexpr std::chrono::nanoseconds step = std::chrono::milliseconds(100);
  while (wait.count() > 0) {
    const auto nap = std::min(wait, step);
    if (clock.sleep) {
      co_await clock.sleep(nap);
    } else {
      co_await EventLoop::current().sleep(nap);
    }
    wait -= nap;
    co_await checkpoint();
  }
}

}  // namespace vise
