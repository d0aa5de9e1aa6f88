#include "filter/throttle_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "util/driver_options.h"
#include "vise/error.h"
#include "vise/event_loop.h"

namespace vise {

namespace {

using Limits = ThrottleGroup::Limits;

constexpr std::array<std::string_view, Limits::kinds> names = {
    "bps-total", "bps-read", "bps-write", "iops-total", "iops-read", "iops-write"};
constexpr double most = 1e15;  // per second

void check(std::string_view name, const ThrottleBucket::Limit& limit) {
  if (limit.average > most || limit.burst > most) {
    throw Error(EINVAL, fmt::format("Throttle limit '{}' must be at most {:.0f}", name, most));
  }
  if (limit.burst_length == 0) {
    throw Error(EINVAL, fmt::format("Throttle limit '{}-max-length' must not be 0", name));
  }
  if (limit.burst > 0 && limit.average == 0) {
    throw Error(EINVAL, fmt::format("Throttle limit '{0}-max' needs '{0}'", name));
  }
  if (limit.burst > 0 && limit.burst < limit.average) {
    throw Error(EINVAL, fmt::format("Throttle limit '{0}-max' must not be below '{0}'", name));
  }
  if (limit.burst_length > 1 && limit.burst == 0) {
    throw Error(EINVAL, fmt::format("Throttle limit '{0}-max-length' needs '{0}-max'", name));
  }
}

void check_exclusion(const Limits& limits, Limits::Kind total, Limits::Kind read,
                     Limits::Kind write) {
  const auto is_set = [&](Limits::Kind kind, double ThrottleBucket::Limit::* member) {
    return limits.limits[kind].*member > 0;
  };
  for (const auto member : {&ThrottleBucket::Limit::average, &ThrottleBucket::Limit::burst}) {
    if (is_set(total, member) && (is_set(read, member) || is_set(write, member))) {
      throw Error(EINVAL, fmt::format("Throttle limit '{}' excludes '{}' and '{}'", names[total],
                                      names[read], names[write]));
    }
  }
}

void set_limit(ThrottleBucket::Limit& limit, std::optional<std::uint64_t> average,
               std::optional<std::uint64_t> burst, std::optional<std::uint32_t> length) {
  if (average) limit.average = static_cast<double>(*average);
  if (burst) limit.burst = static_cast<double>(*burst);
  if (length) limit.burst_length = *length;
}

Limits limits_of(const qapi::ThrottleLimits& from) {
  Limits to;
  set_limit(to.limits[Limits::bytes_total], from.bps_total, from.bps_total_max,
            from.bps_total_max_length);
  set_limit(to.limits[Limits::bytes_read], from.bps_read, from.bps_read_max,
            from.bps_read_max_length);
  set_limit(to.limits[Limits::bytes_write], from.bps_write, from.bps_write_max,
            from.bps_write_max_length);
  set_limit(to.limits[Limits::requests_total], from.iops_total, from.iops_total_max,
            from.iops_total_max_length);
  set_limit(to.limits[Limits::requests_read], from.iops_read, from.iops_read_max,
            from.iops_read_max_length);
  set_limit(to.limits[Limits::requests_write], from.iops_write, from.iops_write_max,
            from.iops_write_max_length);
  to.request_size = from.iops_size.value_or(0);
  return to;
}

}  // namespace

void ThrottleBucket::leak(Seconds passed) {
  level_ = std::max(0.0, level_ - limit_.average * passed.count());
  burst_level_ = std::max(0.0, burst_level_ - limit_.burst * passed.count());
}

ThrottleBucket::Seconds ThrottleBucket::wait() const {
  if (limit_.average == 0) return Seconds(0);
  const double room = limit_.burst == 0 ? limit_.average / 10 : limit_.burst * limit_.burst_length;
  if (level_ > room) return Seconds((level_ - room) / limit_.average);
  // A long burst must not be spent in one moment.
  if (limit_.burst_length > 1) {
    const double excess = burst_level_ - limit_.burst / 10;
    if (excess > 0) return Seconds(excess / limit_.burst);
  }
  return Seconds(0);
}

void ThrottleBucket::pour(double weight) {
  if (limit_.average == 0) return;
  level_ += weight;
  burst_level_ += weight;
}

ThrottleGroup::ThrottleGroup(const Limits& limits)
    : request_size_(limits.request_size), last_(Clock::now()) {
  for (std::size_t kind = 0; kind < Limits::kinds; ++kind) {
    check(names[kind], limits.limits[kind]);
    buckets_[kind].set(limits.limits[kind]);
  }
  check_exclusion(limits, Limits::bytes_total, Limits::bytes_read, Limits::bytes_write);
  check_exclusion(limits, Limits::requests_total, Limits::requests_read, Limits::requests_write);
}

ThrottleBucket::Seconds ThrottleGroup::try_admit(Clock::time_point now, Direction direction,
                                                 std::uint64_t bytes) {
  if (now > last_) {
    for (ThrottleBucket& bucket : buckets_) bucket.leak(now - last_);
    last_ = now;
  }
  const bool reads = direction == Direction::read;
  const std::array mine = {&buckets_[Limits::bytes_total],
                           &buckets_[reads ? Limits::bytes_read : Limits::bytes_write],
                           &buckets_[Limits::requests_total],
                           &buckets_[reads ? Limits::requests_read : Limits::requests_write]};
  ThrottleBucket::Seconds wait(0);
  for (const ThrottleBucket* bucket : mine) wait = std::max(wait, bucket->wait());
  if (wait.count() > 0) return wait;
  const auto length = static_cast<double>(bytes);
  const double requests =
      request_size_ == 0 ? 1.0 : std::max(1.0, length / static_cast<double>(request_size_));
  mine[0]->pour(length);
  mine[1]->pour(length);
  mine[2]->pour(requests);
  mine[3]->pour(requests);
  return wait;
}

Task<void> ThrottleGroup::admit(Direction direction, std::uint64_t bytes) {
  const AsyncMutex::Guard guard = co_await turn_[direction == Direction::read ? 0 : 1].lock();
  for (;;) {
    const ThrottleBucket::Seconds wait = try_admit(Clock::now(), direction, bytes);
    if (wait.count() <= 0) co_return;
    // Rounded up, or a remainder below the clock's resolution would spin here.
    const auto pause = std::chrono::ceil<std::chrono::microseconds>(wait);
    co_await EventLoop::current().sleep(pause);
  }
}

std::shared_ptr<Object> make_throttle_group(const Value::Dict& options) {
  // The old names of the limits stand beside their own.
  Value::Dict nested;
  Value::Dict limits;
  for (const auto& [key, value] : options) {
    if (key.starts_with("x-")) {
      limits.set(std::string_view(key).substr(2), value);
    } else {
      nested.set(key, value);
    }
  }
  if (!limits.empty()) {
    if (nested.contains("limits")) {
      throw Error(EINVAL, "Parameters 'limits' and 'x-…' of a throttle group exclude one another");
    }
    nested.set("limits", std::move(limits));
  }
  const Value all(std::move(nested));
  const auto read = read_value<qapi::ThrottleGroupProperties>(all, ValueInput::options);
  return std::make_shared<ThrottleGroup>(read.limits ? limits_of(*read.limits)
                                                     : ThrottleGroup::Limits());
}

}  // namespace vise
