// Finding out whether a buffer is all zeros, at memory speed.
#include "vise/io_vec.h"

#include <cstring>

namespace vise {

bool is_zero(std::span<const std::byte> data) {
  // The first bytes decide in nearly all non-zero buffers; then the buffer is compared with
  // itself, shifted by those bytes, which the C library does with the widest loads there are.
  constexpr std::size_t probe = 64;
  const std::size_t head = data.size() < probe ? data.size() : probe;
  for (std::size_t i = 0; i < head; ++i) {
    if (data[i] != std::byte{0}) return false;
  }
  if (data.size() <= probe) return true;
  return std::memcmp(data.data(), data.data() + probe, data.size() - probe) == 0;
}

bool is_zero(const ConstIoVec& data) {
  bool zero = true;
  data.for_each([&](std::span<const std::byte> part) {
    zero = is_zero(part);
    return zero;
  });
  return zero;
}

}  // namespace vise
