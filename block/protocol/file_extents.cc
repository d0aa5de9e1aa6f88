// Data and holes by lseek(2).
#include "protocol/file_extents.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

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

FileExtents::Stretch FileExtents::find(int fd, std::uint64_t offset, std::uint64_t size) {
  const bool known = offset >= last_.start && offset - last_.start < last_.length;
  if (!known) last_ = ask(fd, offset, size);
  const std::uint64_t end = std::min(last_.start + last_.length, size);
  return {last_.data, offset, end - offset};
}

void FileExtents::data_written(GuestRange range) {
  if (last_.data || range.empty()) return;
  if (GuestRange{GuestOffset(last_.start), last_.length}.overlaps(range)) forget();
}

}  // namespace vise
