// Bounds of the big-endian reader and writer.
#include "vise/util/endian.h"

#include <cassert>
#include <cerrno>

#include "vise/error.h"

namespace vise {

std::span<const std::byte> BigEndianReader::take(std::size_t length) {
  if (length > remaining()) throw Error(EINVAL, "structure is cut short");
  const auto result = bytes_.subspan(position_, length);
  position_ += length;
  return result;
}

std::span<std::byte> BigEndianWriter::take(std::size_t length) {
  assert(length <= remaining());
  const auto result = bytes_.subspan(position_, length);
  position_ += length;
  return result;
}

}  // namespace vise
