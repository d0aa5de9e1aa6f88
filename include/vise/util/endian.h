// Bytes to integers and back. Nothing else in Vise reads or writes multi-byte numbers in a buffer.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace vise {

static_assert(std::endian::native == std::endian::little, "the loads below swap for this host");

constexpr std::uint16_t byte_swap(std::uint16_t v) { return __builtin_bswap16(v); }
constexpr std::uint32_t byte_swap(std::uint32_t v) { return __builtin_bswap32(v); }
constexpr std::uint64_t byte_swap(std::uint64_t v) { return __builtin_bswap64(v); }
constexpr std::uint8_t byte_swap(std::uint8_t v) { return v; }

/// The big-endian integer at `from`, which must have sizeof(T) bytes.
template <std::unsigned_integral T>
inline T load_be(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return byte_swap(value);
}
template <std::unsigned_integral T>
inline T load_le(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <std::unsigned_integral T>
inline void store_be(std::byte* to, T value) {
  value = byte_swap(value);
  std::memcpy(to, &value, sizeof value);
}
template <std::unsigned_integral T>
inline void store_le(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

/// Reads big-endian fields one after another. Throws Error(EINVAL) when the bytes run out.
class BigEndianReader {
 public:
  explicit BigEndianReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::uint8_t u8() { return load_be<std::uint8_t>(take(1).data()); }
  std::uint16_t u16() { return load_be<std::uint16_t>(take(2).data()); }
  std::uint32_t u32() { return load_be<std::uint32_t>(take(4).data()); }
  std::uint64_t u64() { return load_be<std::uint64_t>(take(8).data()); }
  void skip(std::size_t length) { take(length); }
  /// The next `length` bytes, borrowed from the buffer the reader was made on.
  std::span<const std::byte> take(std::size_t length);
  std::size_t position() const { return position_; }
  std::size_t remaining() const { return bytes_.size() - position_; }

 private:
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

/// Writes big-endian fields one after another into a buffer that must be large enough (asserted).
class BigEndianWriter {
 public:
  explicit BigEndianWriter(std::span<std::byte> bytes) : bytes_(bytes) {}

  void u8(std::uint8_t v) { store_be(take(1).data(), v); }
  void u16(std::uint16_t v) { store_be(take(2).data(), v); }
  void u32(std::uint32_t v) { store_be(take(4).data(), v); }
  void u64(std::uint64_t v) { store_be(take(8).data(), v); }
  void bytes(std::span<const std::byte> v) {
    if (!v.empty()) std::memcpy(take(v.size()).data(), v.data(), v.size());
  }
  void zeroes(std::size_t length) {
    const auto to = take(length);
    if (!to.empty()) std::memset(to.data(), 0, to.size());
  }
  std::size_t position() const { return position_; }
  std::size_t remaining() const { return bytes_.size() - position_; }

 private:
  std::span<std::byte> take(std::size_t length);

  std::span<std::byte> bytes_;
  std::size_t position_ = 0;
};

}  // namespace vise
