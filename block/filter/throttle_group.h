// Throttle groups: limits that several throttle nodes share. See throttle.cc.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>

#include "vise/objects.h"
#include "vise/sync.h"
#include "vise/task.h"
#include "vise/value.h"

namespace vise {

/// A leaking bucket. Requests pour into it what they weigh, and wait while it is too full; it leaks
/// as fast as the limit allows. Knows no clock: the caller says how much time has passed.
class ThrottleBucket {
 public:
  using Seconds = std::chrono::duration<double>;

  struct Limit {
    double average = 0;         // per second; 0: no limit
    double burst = 0;           // per second; 0: what collects in a tenth of a second
    unsigned burst_length = 1;  // seconds for which the burst may last
  };

  void set(Limit limit) { limit_ = limit; }
  const Limit& limit() const { return limit_; }

  void leak(Seconds passed);
  /// How long the next request has to wait; 0: it may go.
  Seconds wait() const;
  void pour(double weight);

 private:
  Limit limit_;
  double level_ = 0;
  double burst_level_ = 0;  // leaks at the rate of the burst
};

class ThrottleGroup final : public Object {
 public:
  enum class Direction { read, write };
  using Clock = std::chrono::steady_clock;

  struct Limits {
    enum Kind {
      bytes_total,
      bytes_read,
      bytes_write,
      requests_total,
      requests_read,
      requests_write,
      kinds
    };
    std::array<ThrottleBucket::Limit, kinds> limits;
    std::uint64_t request_size = 0;  // bytes that count as one request; 0: any length does
  };
  /// Throws Error(EINVAL) for limits that exclude or contradict one another.
  explicit ThrottleGroup(const Limits& limits);

  /// Waits for a request's turn, in order of arrival, and counts it.
  Task<void> admit(Direction direction, std::uint64_t bytes);

  /// How long a request of that kind has to wait if it is `now`; 0: it has been counted.
  ThrottleBucket::Seconds try_admit(Clock::time_point now, Direction direction,
                                    std::uint64_t bytes);

 private:
  std::array<ThrottleBucket, Limits::kinds> buckets_;
  std::uint64_t request_size_;
  Clock::time_point last_;
  // One for each direction; the holder waits for its time. Nothing else is waited for under it.
  std::array<AsyncMutex, 2> turn_;
};

/// {"limits": {"iops-total": 100, …}} or {"x-iops-total": 100, …}. Throws Error(EINVAL).
std::shared_ptr<Object> make_throttle_group(const Value::Dict& options);

}  // namespace vise
