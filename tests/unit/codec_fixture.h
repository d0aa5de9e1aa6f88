// Clusters of several kinds, and their stored forms, for tests of the codecs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <random>
#include <string_view>
#include <vector>

#include "codec/codec.h"

namespace vise::codec {

using Bytes = std::vector<std::byte>;

enum class Kind { text, repeated_byte, sparse, long_distance, random };

inline Bytes make(Kind kind, std::size_t size, unsigned seed = 1) {
  std::mt19937 random(seed);
  Bytes bytes(size);
  static constexpr std::string_view words[] = {"cluster ", "offset ", "table ", "sector\n", "0x"};
  switch (kind) {
    case Kind::text:
      for (std::size_t i = 0; i < size;) {
        for (const char c : words[random() % 5]) {
          if (i < size) bytes[i++] = static_cast<std::byte>(c);
        }
      }
      break;
    case Kind::repeated_byte:
      std::fill(bytes.begin(), bytes.end(), std::byte{0xaa});
      break;
    case Kind::sparse:
      for (std::size_t i = 0; i < size; i += 1 + random() % 200) {
        bytes[i] = static_cast<std::byte>(random());
      }
      break;
    case Kind::long_distance:  // repeats after 20 KB what it began with
      for (std::size_t i = 0; i < size; ++i) {
        bytes[i] = i < 20000 ? static_cast<std::byte>(random()) : bytes[i - 20000];
      }
      break;
    case Kind::random:
      for (std::byte& b : bytes) b = static_cast<std::byte>(random());
      break;
  }
  return bytes;
}

/// The stored form, or empty if it would not be shorter than the cluster.
inline Bytes stored_form(Codec codec, int level, const Bytes& cluster) {
  Bytes stored(cluster.size() - 1);
  stored.resize(compress(codec, level, cluster, stored));
  return stored;
}

}  // namespace vise::codec
