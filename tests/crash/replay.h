// From the log of a disk to the states it may be in after a power failure.
#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "crash/disk.h"

namespace vise::crash {

/// One state after a power failure.
struct State {
  Image image;
  std::uint64_t time;       // of the failure
  std::string description;  // which writes are there
};

/// How many states are tried.
struct Effort {
  unsigned moments_per_flush = 3;   // between two flushes, the last moment among them
  unsigned subsets_per_moment = 4;  // of the writes under way; none and all of them among them
  bool at_the_end_only = false;     // only the moment after the last event
};

/// Calls `examine` for states of a disk that held `start` before the writes of `log`: at every
/// flush boundary and at random moments in between, with none, all and random ones of the writes
/// that no completed flush covers, some of them torn between sectors. Stops when `examine` says
/// false.
void for_each_state(const Image& start, const std::vector<HostEvent>& log, std::uint64_t end,
                    Effort effort, std::mt19937_64& random,
                    const std::function<bool(const State&)>& examine);

}  // namespace vise::crash
