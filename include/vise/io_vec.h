// Scatter/gather vectors: a view of many byte segments as one stretch, sliced without copying.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace vise {

/// One element of a segment array. Const-ness is the vector's, so that one array serves both kinds.
struct IoSegment {
  IoSegment() = default;
  IoSegment(std::span<std::byte> bytes)  // NOLINT: implicit like span's
      : data(bytes.data()), size(bytes.size()) {}
  /// For arrays that are only used in a ConstIoVec.
  explicit IoSegment(std::span<const std::byte> bytes)
      : data(const_cast<std::byte*>(bytes.data())), size(bytes.size()) {}

  std::byte* data = nullptr;
  std::size_t size = 0;  // bytes
};

/// A borrowed view of one or many segments of memory. Trivially copyable; slicing copies nothing
/// and allocates nothing. Neither the segment array nor the memory is owned: both must outlive
/// every request the view is given to.
template <class Byte>
class BasicIoVec {
 public:
  using Span = std::span<Byte>;

  constexpr BasicIoVec() = default;
  /// One segment.
  constexpr BasicIoVec(Span bytes)  // NOLINT: a span is an IoVec of one segment
      : base_(bytes.data()), length_(bytes.size()) {}
  constexpr BasicIoVec(std::span<std::byte> bytes)  // NOLINT: as above
    requires(std::is_const_v<Byte>)
      : base_(bytes.data()), length_(bytes.size()) {}
  BasicIoVec(Byte* base, std::size_t length) : base_(base), length_(length) {}
  /// Many segments; the array `segments` is borrowed.
  explicit BasicIoVec(std::span<const IoSegment> segments) : segments_(segments.data()) {
    for (const IoSegment& s : segments) length_ += s.size;
  }
  /// A vector to write into is also one to read from.
  template <class Other>
    requires(std::is_const_v<Byte> && std::is_same_v<Other, std::remove_const_t<Byte>>)
  BasicIoVec(const BasicIoVec<Other>& other)  // NOLINT: implicit like span's
      : segments_(other.segments_),
        base_(other.base_),
        skip_(other.skip_),
        length_(other.length_) {}

  std::uint64_t size() const { return length_; }
  bool empty() const { return length_ == 0; }

  BasicIoVec slice(std::uint64_t offset, std::uint64_t length) const {
    assert(offset <= length_ && length <= length_ - offset);
    BasicIoVec result = *this;
    result.length_ = length;
    if (segments_ == nullptr) {
      result.base_ = base_ + offset;
      return result;
    }
    result.skip_ += offset;
    if (length == 0) return BasicIoVec();
    while (result.skip_ >= result.segments_->size) {
      result.skip_ -= result.segments_->size;
      ++result.segments_;
    }
    return result;
  }
  BasicIoVec slice(std::uint64_t offset) const { return slice(offset, length_ - offset); }
  BasicIoVec first(std::uint64_t length) const { return slice(0, length); }

  /// Calls f(span) for each non-empty segment in order. If f returns bool, false stops.
  template <class F>
  void for_each(F&& f) const {
    std::uint64_t left = length_;
    if (segments_ == nullptr) {
      if (left > 0) (void)f(Span(base_, left));
      return;
    }
    std::uint64_t skip = skip_;
    for (const IoSegment* s = segments_; left > 0; ++s) {
      if (s->size <= skip) {
        skip -= s->size;
        continue;
      }
      const std::size_t length = std::min<std::uint64_t>(s->size - skip, left);
      const Span part(s->data + skip, length);
      skip = 0;
      left -= length;
      if constexpr (std::is_same_v<decltype(f(part)), bool>) {
        if (!f(part)) return;
      } else {
        f(part);
      }
    }
  }

  /// The bytes as one span, if they lie in one segment; else an empty span with null data.
  Span contiguous() const {
    if (segments_ == nullptr) return Span(base_, length_);
    if (length_ == 0) return {};
    const IoSegment* s = segments_;
    std::uint64_t skip = skip_;
    while (s->size <= skip) skip -= (s++)->size;
    if (s->size - skip < length_) return {};
    return Span(s->data + skip, length_);
  }
  bool is_contiguous() const { return length_ == 0 || contiguous().data() != nullptr; }

  std::size_t segment_count() const {
    std::size_t count = 0;
    for_each([&](Span) { ++count; });
    return count;
  }
  /// True if every segment starts and ends at a multiple of `alignment` (a power of two).
  bool is_aligned(std::size_t alignment) const {
    bool aligned = true;
    for_each([&](Span s) {
      const auto address = reinterpret_cast<std::uintptr_t>(s.data());
      aligned = aligned && ((address | s.size()) & (alignment - 1)) == 0;
    });
    return aligned;
  }

  /// Gathers `to.size()` bytes from `offset` on.
  void copy_to(std::span<std::remove_const_t<Byte>> to, std::uint64_t offset = 0) const {
    auto* out = to.data();
    slice(offset, to.size()).for_each([&](Span s) {
      std::memcpy(out, s.data(), s.size());
      out += s.size();
    });
  }
  /// Scatters `from` to `offset` on.
  void copy_from(std::span<const std::byte> from, std::uint64_t offset = 0) const
    requires(!std::is_const_v<Byte>)
  {
    const auto* in = from.data();
    slice(offset, from.size()).for_each([&](Span s) {
      std::memcpy(s.data(), in, s.size());
      in += s.size();
    });
  }
  void fill(std::byte value) const
    requires(!std::is_const_v<Byte>)
  {
    for_each([&](Span s) { std::memset(s.data(), static_cast<int>(value), s.size()); });
  }
  /// A copy of the segment array (not of the bytes), for composing a longer vector.
  std::vector<IoSegment> segments() const {
    std::vector<IoSegment> result;
    for_each([&](Span s) { result.push_back(IoSegment(s)); });
    return result;
  }

 private:
  template <class>
  friend class BasicIoVec;

  const IoSegment* segments_ = nullptr;  // null: the one segment at base_
  Byte* base_ = nullptr;
  std::uint64_t skip_ = 0;    // bytes of segments_[0] (and following) before the view
  std::uint64_t length_ = 0;  // bytes
};

using IoVec = BasicIoVec<std::byte>;
using ConstIoVec = BasicIoVec<const std::byte>;

/// True if every byte of `data` is zero.
bool is_zero(std::span<const std::byte> data);
inline bool is_zero(std::span<std::byte> data) { return is_zero(std::span<const std::byte>(data)); }
bool is_zero(const ConstIoVec& data);

}  // namespace vise
