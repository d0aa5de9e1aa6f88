#include "bitmap/dirty_bitmap.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "vise/error.h"
#include "vise/util/checked.h"
#include "vise/util/endian.h"

namespace vise {

namespace {

// The first word of `bytes`, which may be shorter.
std::uint64_t first_word(std::span<const std::byte> bytes) {
  std::array<std::byte, 8> word{};
  std::ranges::copy(bytes.first(std::min(bytes.size(), word.size())), word.begin());
  return load_le<std::uint64_t>(word.data());
}

// Ones at [first, end), both up to 64.
std::uint64_t mask(std::uint64_t first, std::uint64_t end) {
  if (first >= end) return 0;
  return (~std::uint64_t{0} >> (64 - (end - first))) << first;
}

}  // namespace

DirtyBitmap::DirtyBitmap(std::uint64_t size, std::uint64_t granularity)
    : size_(0), granularity_bits_(static_cast<unsigned>(std::countr_zero(granularity))) {
  if (!std::has_single_bit(granularity) || granularity < min_granularity ||
      granularity > max_granularity) {
    throw Error(EINVAL, fmt::format("Granularity {} is not a power of two from {} to {}",
                                    granularity, min_granularity, max_granularity));
  }
  resize(size);
}

bool DirtyBitmap::can_resize(std::uint64_t size) const {
  return divide_up(size, granularity()) <= max_bits;
}

void DirtyBitmap::resize(std::uint64_t size) {
  if (!can_resize(size)) {
    throw Error(EFBIG, fmt::format("A bitmap with a granularity of {} cannot cover {} bytes",
                                   granularity(), size));
  }
  const std::uint64_t bits = divide_up(size, granularity());
  if (bits < bits_) change(bits, bits_, Bits::zeros);
  chunks_.resize(divide_up(bits, chunk_bits));
  bits_ = bits;
  size_ = size;
}

bool DirtyBitmap::is_dirty(GuestOffset offset) const {
  const std::uint64_t bit = granule(offset.bytes());
  return bit < bits_ && ((word(bit / 64) >> (bit % 64)) & 1) != 0;
}

void DirtyBitmap::set(GuestRange range) {
  if (range.empty() || range.start.bytes() >= size_) return;
  const std::uint64_t length = std::min(range.length, size_ - range.start.bytes());
  change(granule(range.start.bytes()), granule(range.start.bytes() + length - 1) + 1, Bits::ones);
}

void DirtyBitmap::clear(GuestRange range) {
  if (range.empty() || range.start.bytes() >= size_) return;
  const std::uint64_t first = divide_up(range.start.bytes(), granularity());
  const bool to_the_end = range.length >= size_ - range.start.bytes();
  const std::uint64_t end = to_the_end ? bits_ : granule(range.start.bytes() + range.length);
  change(first, end, Bits::zeros);
}

void DirtyBitmap::clear_all() { change(0, bits_, Bits::zeros); }

// The bits [first, end).
void DirtyBitmap::change(std::uint64_t first, std::uint64_t end, Bits to) {
  const std::uint64_t before = dirty_;
  while (first < end) {
    Chunk& chunk = chunks_[first / chunk_bits];
    const std::uint64_t start = first % chunk_bits;
    const std::uint64_t count = std::min(chunk_bits - start, end - first);
    dirty_ -= chunk.dirty;
    if (count == chunk_bits) {
      chunk.words.reset();
      chunk.dirty = to == Bits::ones ? chunk_bits : 0;
    } else if (chunk.dirty != (to == Bits::ones ? chunk_bits : 0)) {
      change_part(chunk, start, start + count, to);
    }
    dirty_ += chunk.dirty;
    first += count;
  }
  if (dirty_ != before) ++generation_;
}

void DirtyBitmap::change_part(Chunk& chunk, std::uint64_t first, std::uint64_t end, Bits to) {
  Words& words = words_of(chunk);
  for (std::uint64_t index = first / 64; index * 64 < end; ++index) {
    const std::uint64_t from = std::max(first, index * 64) - index * 64;
    const std::uint64_t bits = mask(from, std::min<std::uint64_t>(end - index * 64, 64));
    const std::uint64_t old = words[index];
    words[index] = to == Bits::ones ? old | bits : old & ~bits;
    chunk.dirty += static_cast<std::uint32_t>(std::popcount(words[index]));
    chunk.dirty -= static_cast<std::uint32_t>(std::popcount(old));
  }
  settle(chunk);
}

void DirtyBitmap::settle(Chunk& chunk) {
  if (chunk.dirty == 0 || chunk.dirty == chunk_bits) chunk.words.reset();
}

DirtyBitmap::Words& DirtyBitmap::words_of(Chunk& chunk) {
  if (!chunk.words) {
    chunk.words = std::make_unique<Words>();
    if (chunk.dirty > 0) chunk.words->fill(~std::uint64_t{0});
  }
  return *chunk.words;
}

std::uint64_t DirtyBitmap::word(std::uint64_t index) const {
  const Chunk& chunk = chunks_[index / chunk_words];
  if (chunk.words) return (*chunk.words)[index % chunk_words];
  return chunk.dirty > 0 ? ~std::uint64_t{0} : 0;
}

// The first such bit of [first, end), or `end`.
std::uint64_t DirtyBitmap::find(std::uint64_t first, std::uint64_t end, Bits wanted) const {
  while (first < end) {
    const Chunk& chunk = chunks_[first / chunk_bits];
    if (!chunk.words) {
      if ((chunk.dirty > 0) == (wanted == Bits::ones)) return first;
      first = (first / chunk_bits + 1) * chunk_bits;
      continue;
    }
    const std::uint64_t here = word(first / 64);
    const std::uint64_t found = (wanted == Bits::ones ? here : ~here) >> (first % 64);
    if (found != 0) {
      return std::min(first + static_cast<unsigned>(std::countr_zero(found)), end);
    }
    first = (first / 64 + 1) * 64;
  }
  return end;
}

std::optional<GuestRange> DirtyBitmap::next_dirty(GuestOffset from, std::uint64_t end) const {
  end = std::min(end, size_);
  if (from.bytes() >= end) return std::nullopt;
  const std::uint64_t end_bit = divide_up(end, granularity());
  const std::uint64_t first = find(granule(from.bytes()), end_bit, Bits::ones);
  if (first == end_bit) return std::nullopt;
  const std::uint64_t last = find(first, end_bit, Bits::zeros);
  const std::uint64_t start = std::max(from.bytes(), first << granularity_bits_);
  return GuestRange{GuestOffset(start), std::min(last << granularity_bits_, end) - start};
}

DirtyBitmap::Stretch DirtyBitmap::stretch(GuestRange range) const {
  const std::uint64_t start = range.start.bytes();
  const std::uint64_t end = start + std::min(range.length, size_ - start);
  const bool dirty = is_dirty(range.start);
  const std::uint64_t other =
      find(granule(start), divide_up(end, granularity()), dirty ? Bits::zeros : Bits::ones);
  return {dirty, std::min(other << granularity_bits_, end) - start};
}

void DirtyBitmap::merge(const DirtyBitmap& other) {
  if (other.size_ != size_) {
    throw Error(EINVAL, fmt::format("A bitmap of a disk of {} bytes cannot be merged into one of "
                                    "{} bytes",
                                    other.size_, size_));
  }
  if (&other == this) return;
  std::optional<GuestRange> dirty = other.next_dirty(GuestOffset(0));
  while (dirty) {
    set(*dirty);
    dirty = other.next_dirty(dirty->end());
  }
}

void DirtyBitmap::save(std::uint64_t offset, std::span<std::byte> bytes) const {
  std::ranges::fill(bytes, std::byte{0});
  const std::uint64_t words = divide_up(bits_, 64);
  for (std::uint64_t i = 0; i < bytes.size() && (offset + i) / 8 < words; i += 8) {
    std::array<std::byte, 8> value;
    store_le(value.data(), word((offset + i) / 8));
    std::copy_n(value.begin(), std::min(bytes.size() - i, value.size()), bytes.data() + i);
  }
}

void DirtyBitmap::load(std::uint64_t offset, std::span<const std::byte> bytes) {
  for (std::uint64_t i = 0; i < bytes.size(); i += 8) {
    const std::uint64_t first = (offset + i) * 8;
    if (first >= bits_) break;
    const std::uint64_t added =
        first_word(bytes.subspan(i)) & mask(0, std::min<std::uint64_t>(bits_ - first, 64));
    const std::uint64_t fresh = added & ~word(first / 64);
    if (fresh == 0) continue;
    Chunk& chunk = chunks_[first / chunk_bits];
    words_of(chunk)[first / 64 % chunk_words] |= fresh;
    const auto count = static_cast<std::uint32_t>(std::popcount(fresh));
    chunk.dirty += count;
    dirty_ += count;
    ++generation_;
    settle(chunk);
  }
}

void DirtyBitmap::load_ones(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t first = std::min(offset, serialized_size()) * 8;
  const std::uint64_t end = std::min(offset + length, serialized_size()) * 8;
  change(std::min(first, bits_), std::min(end, bits_), Bits::ones);
}

bool DirtyBitmap::is_zero(std::uint64_t offset, std::uint64_t length) const {
  const std::uint64_t end = std::min((offset + length) * 8, bits_);
  return find(std::min(offset * 8, end), end, Bits::ones) == end;
}

}  // namespace vise
