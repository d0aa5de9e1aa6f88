// The two kinds of offset and the ranges made of them. Guest offsets (what a node's parent
// addresses) and host offsets (where it lies in the child) never mix: the compiler refuses.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>

namespace vise {

/// A byte offset in one of the two address spaces of a node. Does not convert from or to integers.
template <class Tag>
class Offset {
 public:
  constexpr Offset() = default;
  constexpr explicit Offset(std::uint64_t bytes) : bytes_(bytes) {}

  constexpr std::uint64_t bytes() const { return bytes_; }
  /// `alignment` must be a power of two.
  constexpr bool is_aligned(std::uint64_t alignment) const {
    return (bytes_ & (alignment - 1)) == 0;
  }
  constexpr Offset align_down(std::uint64_t alignment) const {
    return Offset(bytes_ & ~(alignment - 1));
  }
  /// Wraps for offsets within `alignment` of 2^64; check untrusted values before.
  constexpr Offset align_up(std::uint64_t alignment) const {
    return Offset((bytes_ + alignment - 1) & ~(alignment - 1));
  }

  constexpr auto operator<=>(const Offset&) const = default;
  constexpr Offset operator+(std::uint64_t length) const { return Offset(bytes_ + length); }
  constexpr Offset operator-(std::uint64_t length) const { return Offset(bytes_ - length); }
  constexpr std::uint64_t operator-(Offset other) const { return bytes_ - other.bytes_; }
  constexpr Offset& operator+=(std::uint64_t length) {
    bytes_ += length;
    return *this;
  }

 private:
  std::uint64_t bytes_ = 0;
};

using GuestOffset = Offset<struct GuestTag>;
using HostOffset = Offset<struct HostTag>;

/// The half-open stretch [start, start + length).
template <class Tag>
struct Range {
  Offset<Tag> start;
  std::uint64_t length = 0;  // bytes

  /// Only for ranges known not to wrap: check ends_by() on untrusted ones first.
  constexpr Offset<Tag> end() const { return start + length; }
  /// True if the range neither wraps nor reaches past `limit`.
  constexpr bool ends_by(std::uint64_t limit) const {
    return length <= limit && start.bytes() <= limit - length;
  }
  constexpr bool empty() const { return length == 0; }
  constexpr bool contains(Offset<Tag> offset) const {
    return offset >= start && offset - start < length;
  }
  constexpr bool overlaps(const Range& other) const {
    return start < other.end() && other.start < end();
  }
  constexpr Range intersection(const Range& other) const {
    const auto from = std::max(start, other.start);
    const auto to = std::min(end(), other.end());
    return to > from ? Range{from, to - from} : Range{from, 0};
  }
  /// The smallest range that covers this one with both ends aligned (a power of two).
  constexpr Range align_out(std::uint64_t alignment) const {
    const auto from = start.align_down(alignment);
    return {from, end().align_up(alignment) - from};
  }
  constexpr bool operator==(const Range&) const = default;
};

using GuestRange = Range<GuestTag>;
using HostRange = Range<HostTag>;

/// A set of flags of one enumeration whose enumerators are single bits.
template <class Enum>
class FlagSet {
 public:
  constexpr FlagSet() = default;
  constexpr FlagSet(Enum flag) : bits_(static_cast<std::uint32_t>(flag)) {}  // NOLINT: implicit

  constexpr bool has(Enum flag) const { return (bits_ & static_cast<std::uint32_t>(flag)) != 0; }
  constexpr bool has_all(FlagSet other) const { return (bits_ & other.bits_) == other.bits_; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr FlagSet operator|(FlagSet other) const { return from(bits_ | other.bits_); }
  constexpr FlagSet operator&(FlagSet other) const { return from(bits_ & other.bits_); }
  constexpr FlagSet without(FlagSet other) const { return from(bits_ & ~other.bits_); }
  constexpr FlagSet& operator|=(FlagSet other) { return *this = *this | other; }
  constexpr bool operator==(const FlagSet&) const = default;

 private:
  static constexpr FlagSet from(std::uint32_t bits) {
    FlagSet set;
    set.bits_ = bits;
    return set;
  }
  std::uint32_t bits_ = 0;
};

}  // namespace vise
