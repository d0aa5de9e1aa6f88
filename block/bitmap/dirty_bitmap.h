// Which granules of a disk have changed: one bit for each. Stretches that are all clean or all
// dirty take no memory but for 16 bytes per 32768 bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "vise/types.h"

namespace vise {

class DirtyBitmap {
 public:
  static constexpr std::uint64_t min_granularity = 512;
  static constexpr std::uint64_t max_granularity = std::uint64_t{1} << 31;
  /// Bounds the index of a bitmap to 32 MiB.
  static constexpr std::uint64_t max_bits = std::uint64_t{1} << 36;

  /// All clean. `size`: bytes of the disk; `granularity`: bytes per bit, a power of two. Throws
  /// Error(EINVAL) for any other granularity, EFBIG for one too fine for the size.
  DirtyBitmap(std::uint64_t size, std::uint64_t granularity);

  std::uint64_t size() const { return size_; }
  std::uint64_t granularity() const { return std::uint64_t{1} << granularity_bits_; }
  std::uint64_t bits() const { return bits_; }
  /// Whole granules: may be more than size().
  std::uint64_t dirty_bytes() const { return dirty_ << granularity_bits_; }
  bool is_dirty(GuestOffset offset) const;
  /// Grows with every call that changes a bit: equal means equal content.
  std::uint64_t generation() const { return generation_; }

  /// Ranges may reach past size(); what lies there is ignored.
  /// Marks each granule that `range` touches.
  void set(GuestRange range);
  /// Cleans the granules that lie wholly in `range`; the last one of the disk may be cut by its
  /// end.
  void clear(GuestRange range);
  void clear_all();

  /// The first dirty stretch that starts at or after `from` and before `end` (bytes), not reaching
  /// past `end` or size().
  std::optional<GuestRange> next_dirty(GuestOffset from, std::uint64_t end = UINT64_MAX) const;

  /// The stretch at `range.start` (inside size()) that is all clean or all dirty, no longer than
  /// `range`.
  struct Stretch {
    bool dirty;
    std::uint64_t length;  // bytes
  };
  Stretch stretch(GuestRange range) const;

  /// Adds what is dirty in `other`, whose granularity may differ. Throws Error(EINVAL) if the sizes
  /// do.
  void merge(const DirtyBitmap& other);

  /// What is added starts clean. Throws Error(EFBIG), with nothing changed, beyond max_bits.
  void resize(std::uint64_t size);
  bool can_resize(std::uint64_t size) const;

  /// The serialised form (qcow2.md 7.1): bit k in byte k/8 as bit k%8, unused bits of the last byte
  /// 0. Offsets are multiples of 8 bytes; lengths too, except at the end.
  std::uint64_t serialized_size() const { return (bits_ + 7) / 8; }
  /// Fills `bytes` with what stands at `offset`, and with zeros past the end.
  void save(std::uint64_t offset, std::span<std::byte> bytes) const;
  /// Adds bits; those past the end are ignored.
  void load(std::uint64_t offset, std::span<const std::byte> bytes);
  void load_ones(std::uint64_t offset, std::uint64_t length);
  bool is_zero(std::uint64_t offset, std::uint64_t length) const;

 private:
  static constexpr std::uint64_t chunk_words = 512;
  static constexpr std::uint64_t chunk_bits = chunk_words * 64;
  using Words = std::array<std::uint64_t, chunk_words>;
  // Words exist where some bits are set and some are not.
  struct Chunk {
    std::uint32_t dirty = 0;
    std::unique_ptr<Words> words;
  };
  enum class Bits { zeros, ones };

  std::uint64_t granule(std::uint64_t bytes) const { return bytes >> granularity_bits_; }
  void change(std::uint64_t first, std::uint64_t end, Bits to);
  void change_part(Chunk& chunk, std::uint64_t first, std::uint64_t end, Bits to);
  void settle(Chunk& chunk);
  Words& words_of(Chunk& chunk);
  std::uint64_t word(std::uint64_t index) const;
  std::uint64_t find(std::uint64_t first, std::uint64_t end, Bits wanted) const;

  std::uint64_t size_;
  unsigned granularity_bits_;
  std::uint64_t bits_ = 0;
  std::uint64_t dirty_ = 0;  // bits set
  std::uint64_t generation_ = 0;
  std::vector<Chunk> chunks_;
};

}  // namespace vise
