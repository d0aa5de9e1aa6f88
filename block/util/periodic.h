// Something that is done again and again while an object lives, without keeping the loop alive.
#pragma once

#include <chrono>
#include <functional>

#include "vise/event_loop.h"

namespace vise {

class Periodic {
 public:
  /// Calls `work`, which must neither throw nor destroy this object, on the loop's thread every
  /// `interval` (at least a millisecond), for the first time after one. Destroyed there, too.
  Periodic(EventLoop& loop, std::chrono::milliseconds interval, std::function<void()> work);
  ~Periodic();
  Periodic(const Periodic&) = delete;
  Periodic& operator=(const Periodic&) = delete;

 private:
  std::function<void()> work_;
  void* source_;  // a GSource
};

}  // namespace vise
