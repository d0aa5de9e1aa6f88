// How fast a copy may go.
#pragma once

#include <chrono>
#include <cstdint>

namespace vise {

/// Spaces out work so that it averages a number of bytes per second. Knows no clock: the caller
/// says what time it is, and sleeps.
class RateLimit {
 public:
  using Clock = std::chrono::steady_clock;

  /// 0: no limit.
  explicit RateLimit(std::uint64_t bytes_per_second = 0) : rate_(bytes_per_second) {}

  void set(std::uint64_t bytes_per_second) { rate_ = bytes_per_second; }
  std::uint64_t bytes_per_second() const { return rate_; }

  /// Books `bytes` and says how long to wait before moving them. Time in which nothing was booked
  /// is not saved up.
  std::chrono::nanoseconds reserve(Clock::time_point now, std::uint64_t bytes) {
    if (rate_ == 0) return {};
    if (next_ < now) next_ = now;
    const auto wait = next_ - now;
    const double seconds = static_cast<double>(bytes) / static_cast<double>(rate_);
    next_ += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    return wait;
  }

 private:
  std::uint64_t rate_;
  Clock::time_point next_;
};

}  // namespace vise
