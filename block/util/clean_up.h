// A clean-up of several steps that all have their turn, whatever fails before them.
#pragma once

#include <exception>
#include <utility>

#include "vise/task.h"

namespace vise {

/// Keeps the first failure of its steps; finish() throws it.
class CleanUp {
 public:
  /// Runs `work` to its end and never throws. *this must outlive the task.
  Task<void> step(Task<void> work) {
    try {
      co_await std::move(work);
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void finish() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  std::exception_ptr failure_;
};

}  // namespace vise
