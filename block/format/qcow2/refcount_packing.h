// How the counts of a refcount block are packed, 1 to 64 bits each (qcow2.md 4.2).
#pragma once

#include <cstddef>
#include <cstdint>

#include "vise/util/endian.h"

namespace vise::qcow2 {

/// The count with that index in `block`; counts are 1 << order bits wide, order 0 to 6.
inline std::uint64_t load_refcount(const std::byte* block, unsigned order, std::uint64_t index) {
  switch (order) {
    case 3:
      return load_be<std::uint8_t>(block + index);
    case 4:
      return load_be<std::uint16_t>(block + index * 2);
    case 5:
      return load_be<std::uint32_t>(block + index * 4);
    case 6:
      return load_be<std::uint64_t>(block + index * 8);
    default: {  // several in a byte, the first in the lowest bits
      const unsigned bits = 1u << order;
      const unsigned shift = static_cast<unsigned>(index << order) & 7;
      return std::to_integer<unsigned>(block[index << order >> 3]) >> shift & ((1u << bits) - 1);
    }
  }
}

/// `count` must fit.
inline void store_refcount(std::byte* block, unsigned order, std::uint64_t index,
                           std::uint64_t count) {
  switch (order) {
    case 3:
      store_be(block + index, static_cast<std::uint8_t>(count));
      break;
    case 4:
      store_be(block + index * 2, static_cast<std::uint16_t>(count));
      break;
    case 5:
      store_be(block + index * 4, static_cast<std::uint32_t>(count));
      break;
    case 6:
      store_be(block + index * 8, count);
      break;
    default: {
      const unsigned shift = static_cast<unsigned>(index << order) & 7;
      const unsigned mask = ((1u << (1u << order)) - 1) << shift;
      std::byte& at = block[index << order >> 3];
      at = (at & static_cast<std::byte>(~mask)) | static_cast<std::byte>(count << shift);
    }
  }
}

}  // namespace vise::qcow2
