// Aligned memory for I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vise {

/// A move-only stretch of memory, aligned so that direct I/O can use it. Comes from a per-thread
/// pool of recently freed buffers; the content is unspecified until written.
class Buffer {
 public:
  /// What every Buffer is aligned to, in bytes; enough for O_DIRECT on any Linux block device.
  static constexpr std::size_t alignment = 4096;

  Buffer() = default;
  /// `size` bytes. Throws Error(ENOMEM) where the memory cannot be had.
  explicit Buffer(std::size_t size);
  /// `size` zero bytes.
  static Buffer zeroed(std::size_t size);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::span<std::byte> span() { return {data_, size_}; }
  std::span<const std::byte> span() const { return {data_, size_}; }
  std::span<std::byte> first(std::size_t length) { return span().first(length); }
  operator std::span<std::byte>() { return span(); }              // NOLINT: a buffer is its bytes
  operator std::span<const std::byte>() const { return span(); }  // NOLINT: a buffer is its bytes

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace vise
