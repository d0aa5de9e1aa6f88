// A place among a bounded number of chunks in flight.
#pragma once

#include "vise/sync.h"

namespace vise {

/// Frees a slot that was acquired before, when a chunk ends, however it ends.
class SlotHolder {
 public:
  explicit SlotHolder(AsyncSemaphore& slots) : slots_(slots) {}
  SlotHolder(const SlotHolder&) = delete;
  ~SlotHolder() { slots_.release(); }

 private:
  AsyncSemaphore& slots_;
};

}  // namespace vise
