// What fails when a copy fails.
#pragma once

#include "vise/error.h"
#include "vise/types.h"

namespace vise {

/// A failure that says on which side it was, and where.
class CopyError : public Error {
 public:
  enum class Side { source, target };
  CopyError(const Error& error, Side side, GuestOffset at = {})
      : Error(error), side_(side), at_(at) {}
  Side side() const { return side_; }
  /// The start of the request that failed, or what of it is known to be bad; 0 where nobody asks.
  GuestOffset at() const { return at_; }

 private:
  Side side_;
  GuestOffset at_;
};

}  // namespace vise
