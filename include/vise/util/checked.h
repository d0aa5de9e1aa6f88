// Arithmetic on numbers that come from outside. Each function answers whether the result fits.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>

namespace vise::checked {

/// a + b, or nothing if it does not fit T.
template <std::integral T>
constexpr std::optional<T> add(T a, T b) {
  T result{};
  if (__builtin_add_overflow(a, b, &result)) return std::nullopt;
  return result;
}

/// a - b, or nothing if it does not fit T.
template <std::integral T>
constexpr std::optional<T> subtract(T a, T b) {
  T result{};
  if (__builtin_sub_overflow(a, b, &result)) return std::nullopt;
  return result;
}

/// a * b, or nothing if it does not fit T.
template <std::integral T>
constexpr std::optional<T> multiply(T a, T b) {
  T result{};
  if (__builtin_mul_overflow(a, b, &result)) return std::nullopt;
  return result;
}

/// value << bits without losing a set bit, or nothing.
template <std::unsigned_integral T>
constexpr std::optional<T> shift_left(T value, unsigned bits) {
  constexpr unsigned width = sizeof(T) * 8;
  if (bits >= width) return value == 0 ? std::optional<T>(0) : std::nullopt;
  const T result = static_cast<T>(value << bits);
  if (static_cast<T>(result >> bits) != value) return std::nullopt;
  return result;
}

/// The smallest multiple of `alignment` (a power of two) not below `value`, or nothing.
template <std::unsigned_integral T>
constexpr std::optional<T> align_up(T value, T alignment) {
  const auto sum = add<T>(value, static_cast<T>(alignment - 1));
  if (!sum) return std::nullopt;
  return static_cast<T>(*sum & ~(alignment - 1));
}

}  // namespace vise::checked

namespace vise {

/// Rounds up to a multiple of `alignment`, a power of two. For trusted values only.
constexpr std::uint64_t align_up(std::uint64_t value, std::uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}
constexpr std::uint64_t align_down(std::uint64_t value, std::uint64_t alignment) {
  return value & ~(alignment - 1);
}
/// ceil(a / b); b > 0. Does not wrap.
constexpr std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

}  // namespace vise
