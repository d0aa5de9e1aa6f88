// Chunks work at the same time, but begin to store in guest order, so that the target's layout does
// not depend on who was faster.
#pragma once

#include <cstdint>

#include "vise/sync.h"

namespace vise {

/// The order of numbered chunks, from 0 on.
class Turns {
 public:
  /// Returns once all earlier chunks have passed. Nobody waits any more after stop(): look at
  /// stopped().
  Task<void> wait_for(std::uint64_t number) {
    while (current_ != number && !stopped_) co_await changed_.wait();
  }
  /// By the chunk whose turn it is, once all it stores is on its way.
  void pass() {
    ++current_;
    changed_.wake_all();
  }
  /// A chunk has failed: those behind it are not to store anything.
  void stop() {
    stopped_ = true;
    changed_.wake_all();
  }
  bool stopped() const { return stopped_; }

 private:
  std::uint64_t current_ = 0;
  bool stopped_ = false;
  WaitQueue changed_;
};

/// The place of one chunk in that order, which end() gives up whatever has become of the chunk.
class Turn {
 public:
  Turn(Turns& turns, std::uint64_t number) : turns_(turns), number_(number) {}
  Turn(const Turn&) = delete;

  Task<void> wait() { return turns_.wait_for(number_); }
  void pass() {
    passed_ = true;
    turns_.pass();
  }
  /// Nothing more is stored: passes when it is its turn, unless it has done so.
  Task<void> end() {
    if (passed_) co_return;
    co_await wait();
    pass();
  }

 private:
  Turns& turns_;
  const std::uint64_t number_;
  bool passed_ = false;
};

}  // namespace vise
