// Data and holes by lseek(2).
#include "protocol/file_extents.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

namespace vise {

namespace {

// offset < size.
FileExtents::Stretch ask(int fd, std::uint64_t offset, std::uint64_t size) {
  const auto start = static_cast<off_t>(offset);
  const off_t data = lseek(fd, start, SEEK_DATA);
  if (data < 0 && errno == ENXIO) return {false, offset, size - offset};
  if (data < start) return {true, offset, size - offset};
  if (data > start) {
    return {false, offset,
            std::min<std::uint64_t>(static_cast<std::uint64_t>(data), size) - offset};
  }
  const off_t hole = lseek(fd, start, SEEK_HOLE);
  // Nothing sensible: an error, or a hole that somebody punched since the first question.
  if (hole <= start) return {true, offset, size - offset};
  return {true, offset, std::min<std::uint64_t>(static_cast<std::uint64_t>(hole), size) - offset};
}

}  // namespace

// Is it in the data of the last answer, or of one before?
bool FileExtents::knows(std::uint64_t offset) {
  const auto holds = [&](const Stretch& stretch) {
    return offset >= stretch.start && offset - stretch.start < stretch.length;
  };
  if (holds(last_)) return true;
  const auto behind = known_.upper_bound(offset);
  if (behind == known_.begin() || !holds(std::prev(behind)->second)) return false;
  last_ = std::prev(behind)->second;
  return true;
}

void FileExtents::remember(const Stretch& stretch) {
  constexpr std::size_t most = 4096;
  if (known_.size() >= most) known_.clear();
  // Only the rest of an extent was asked for; what was known lies in it or outside of it.
  known_.erase(known_.lower_bound(stretch.start),
               known_.lower_bound(stretch.start + stretch.length));
  known_.emplace(stretch.start, stretch);
  last_ = stretch;
}

FileExtents::Stretch FileExtents::find(int fd, std::uint64_t offset, std::uint64_t size) {
  constexpr std::chrono::seconds keep{1};
  const auto now = std::chrono::steady_clock::now();
  if (!known_.empty() && now - since_ > keep) forget();
  if (!knows(offset)) {
    const Stretch found = ask(fd, offset, size);
    if (!found.data) return found;
    if (known_.empty()) since_ = now;
    remember(found);
  }
  const std::uint64_t end = std::min(last_.start + last_.length, size);
  return {true, offset, end - offset};
}

void FileExtents::forget() {
  last_ = {};
  known_.clear();
}

}  // namespace vise
