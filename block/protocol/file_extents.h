// Where the data and the holes of a sparse file are.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>

#include "vise/types.h"

namespace vise {

/// Asks the file system (SEEK_DATA, SEEK_HOLE) and remembers for a second where data is: who walks
/// an image meets the extents of its file in any order, and each of them several times. Holes are
/// asked for anew each time: another process may have written there since, and what it wrote must
/// not be taken for zeros.
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

  /// To be called after everything that may have made holes.
  void forget();

 private:
  bool knows(std::uint64_t offset);
  void remember(const Stretch& stretch);

  Stretch last_;                                 // the last answer
  std::map<std::uint64_t, Stretch> known_;       // by start; none overlaps another
  std::chrono::steady_clock::time_point since_;  // when the oldest of them was asked for
};

}  // namespace vise
