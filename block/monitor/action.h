// One change that can be taken back as long as it does not count: what transactions are made of.
#pragma once

#include <memory>
#include <utility>

#include "vise/task.h"

namespace vise {

class Action {
 public:
  virtual ~Action() = default;
  /// Does it, so that it can be taken back. Throws, with nothing changed.
  virtual Task<void> prepare() = 0;
  /// It counts from now on.
  virtual Task<void> commit() { co_return; }
  /// As if prepare() had not been. Must not throw.
  virtual Task<void> roll_back() { co_return; }
};

/// One alone.
inline Task<void> run_action(std::unique_ptr<Action> action) {
  co_await action->prepare();
  co_await action->commit();
}

}  // namespace vise
