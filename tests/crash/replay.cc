// A moment of power failure splits the log: what a flush had covered by then is there, the rest is
// there or not, whole or in part. Of writes to the same place, the later one wins.
#include "crash/replay.h"

#include <fmt/format.h>

#include <algorithm>

namespace vise::crash {

namespace {

using Random = std::mt19937_64;

/// The flushes seen from a power failure at `time`: everything completed before the result is
/// stable.
std::uint64_t stable_before(const std::vector<HostEvent>& log, std::uint64_t time) {
  std::uint64_t barrier = 0;
  for (const HostEvent& event : log) {
    if (event.kind == HostEvent::Kind::flush && event.completed < time) {
      barrier = std::max(barrier, event.issued);
    }
  }
  return barrier;
}

/// The moments at which the power fails, in order.
std::vector<std::uint64_t> moments(const std::vector<HostEvent>& log, std::uint64_t end,
                                   unsigned per_flush, Random& random) {
  std::vector<std::uint64_t> boundaries = {0};
  for (const HostEvent& event : log) {
    if (event.kind == HostEvent::Kind::flush && event.completed < end) {
      boundaries.push_back(event.completed);
    }
  }
  std::sort(boundaries.begin(), boundaries.end());
  boundaries.push_back(end + 1);
  std::vector<std::uint64_t> result;
  for (std::size_t i = 0; i + 1 < boundaries.size(); ++i) {
    const std::uint64_t from = boundaries[i] + 1;  // just after this flush …
    const std::uint64_t to = boundaries[i + 1];    // … to just before the next one completes
    if (from > to) continue;
    result.push_back(to);
    for (unsigned k = 1; k < per_flush && to - from >= k; ++k) {
      result.push_back(from + random() % (to - from + 1));
    }
  }
  std::sort(result.begin(), result.end());
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return result;
}

/// Which of the writes that are not stable have reached the disk.
struct Subset {
  unsigned percent_there;
  unsigned percent_torn;  // of those there
};

Subset choose_subset(unsigned number, Random& random) {
  if (number == 0) return {100, 0};
  if (number == 1) return {0, 0};
  static constexpr unsigned percent[] = {5, 20, 50, 80, 95};
  return {percent[random() % 5], random() % 2 == 0 ? 0U : 30U};
}

void apply_subset(const std::vector<const HostEvent*>& events, Subset subset, Random& random,
                  State& state) {
  std::size_t there = 0;
  std::size_t torn = 0;
  for (const HostEvent* event : events) {
    if (random() % 100 >= subset.percent_there) continue;
    ++there;
    if (random() % 100 >= subset.percent_torn) {
      apply(*event, state.image, [](std::uint64_t) { return true; });
      continue;
    }
    ++torn;
    const std::uint64_t sectors = random();
    apply(*event, state.image,
          [sectors](std::uint64_t i) { return ((sectors >> (i % 64)) & 1) != 0; });
  }
  state.description = fmt::format("power failure at {}, {} of {} unflushed writes there, {} torn",
                                  state.time, there, events.size(), torn);
}

}  // namespace

void for_each_state(const Image& start, const std::vector<HostEvent>& log, std::uint64_t end,
                    Effort effort, Random& random,
                    const std::function<bool(const State&)>& examine) {
  std::vector<const HostEvent*> by_completion;
  for (const HostEvent& event : log) by_completion.push_back(&event);
  std::sort(by_completion.begin(), by_completion.end(), [](const HostEvent* a, const HostEvent* b) {
    return a->completed != b->completed ? a->completed < b->completed : a->issued < b->issued;
  });

  Image stable = start;
  std::size_t next = 0;  // of by_completion; those before it are in `stable`
  std::vector<std::uint64_t> times = moments(log, end, effort.moments_per_flush, random);
  if (effort.at_the_end_only) times = {end + 1};
  for (const std::uint64_t time : times) {
    const std::uint64_t barrier = stable_before(log, time);
    for (; next < by_completion.size() && by_completion[next]->completed < barrier; ++next) {
      apply(*by_completion[next], stable, [](std::uint64_t) { return true; });
    }
    std::vector<const HostEvent*> unstable;
    for (std::size_t i = next; i < by_completion.size(); ++i) {
      const HostEvent& event = *by_completion[i];
      if (event.issued < time && event.kind != HostEvent::Kind::flush) unstable.push_back(&event);
    }
    const unsigned subsets = unstable.empty() ? 1 : effort.subsets_per_moment;
    for (unsigned number = 0; number < subsets; ++number) {
      State state{stable, time, {}};
      apply_subset(unstable, choose_subset(number, random), random, state);
      if (!examine(state)) return;
    }
  }
}

}  // namespace vise::crash
