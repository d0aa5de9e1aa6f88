// Work through an edge that is there for that work alone.
#pragma once

#include <exception>
#include <memory>
#include <utility>

#include "vise/child.h"
#include "vise/task.h"

namespace vise {

/// Runs `body` with the child, and detaches it whatever comes of that. What `body` refers to
/// outlives the task.
template <class Body>
Task<void> with_child(std::unique_ptr<Child> child, Body body) {
  std::exception_ptr failure;
  try {
    Task<void> work = body(*child);
    co_await std::move(work);
  } catch (...) {
    failure = std::current_exception();
  }
  co_await child->detach();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise
