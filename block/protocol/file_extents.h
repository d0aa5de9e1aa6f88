// Where the data and the holes of a sparse file are.
#pragma once

#include <cstdint>

#include "vise/types.h"

namespace vise {

/// Asks the file system (SEEK_DATA, SEEK_HOLE) and remembers the last answer: a walk over a file
/// in small steps would otherwise look at the same long extent over and over.
class FileExtents {
 public:
  struct Stretch {
    bool data = true;
    std::uint64_t start = 0;   // bytes from the start of the file
    std::uint64_t length = 0;  // bytes; 0: nothing is known
  };

  /// The stretch of data or hole that `offset` lies in, cut at `size`, the end of the file. A file
  /// system that cannot tell has data everywhere.
  Stretch find(int fd, std::uint64_t offset, std::uint64_t size);

  /// To be called after everything that may have changed the allocation of `range`.
  void data_written(GuestRange range);
  void forget() { last_ = {}; }

 private:
  Stretch last_;
};

}  // namespace vise
