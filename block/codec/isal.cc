// isal_deflate_stateless() reads two things that nobody has set, and streams differ by them from
// thread to thread (valid, but not the same bytes). Found in libisal 2.30 by its output and its
// machine code:
//
// - hist_bits, how far matches go back, which isal_deflate_stateless_init() leaves as it was.
//
// - At the first three bytes of a stream, the assembly of levels 1 and 2 computes the hash of the
//   third position not from the input, but from bits 16 to 47 of the address of the isal_zstream.
//   The position is stored in that wrong slot of the hash table. That has no effect on the output
//   except where the slot belongs to what is at one of the positions stored there otherwise: then
//   a match with the begin of the cluster is missed, or found. With 32768 slots, that is one
//   cluster in 10,000.
//
// So each thread has streams at several addresses, and takes one whose slot is none of those.
#include "codec/isal.h"

#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "vise/error.h"
#include "vise/util/endian.h"

namespace vise::codec::isal {
namespace {

using Bytes = std::span<const std::byte>;

/// The hash of four bytes: their CRC-32C, without the inversions of the usual one. Tables of small
/// clusters have fewer slots and use its low bits, of which there are at least eight.
constexpr std::uint32_t hash_of(std::uint32_t word) {
  constexpr std::uint32_t polynomial = 0x82f63b78;
  constexpr auto table = [] {
    std::array<std::uint32_t, 256> entries{};
    for (std::uint32_t i = 0; i < entries.size(); ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? polynomial : 0);
      entries[i] = value;
    }
    return entries;
  }();
  for (int byte = 0; byte < 4; ++byte) word = (word >> 8) ^ table[word & 0xff];
  return word;
}

constexpr std::uint8_t slot_of(std::uint32_t word) {
  return static_cast<std::uint8_t>(hash_of(word));
}

/// The slots that the wrong one must not be, or more.
using Slots = std::array<std::uint8_t, 4>;

/// How many bytes at the begin of the cluster libisal writes as one run of zeroes or ones. It
/// starts anew behind them.
std::size_t first_run(Bytes cluster) {
  constexpr std::size_t shortest_run = 4096;
  const std::byte first = cluster.front();
  if (first != std::byte{0} && first != std::byte{0xff}) return 0;
  const auto end = std::find_if(cluster.begin(), cluster.end(),
                                [first](std::byte byte) { return byte != first; });
  const auto length = static_cast<std::size_t>(end - cluster.begin());
  return length < shortest_run ? 0 : length;
}

Slots used_slots(Bytes cluster) {
  const auto slot_at = [cluster](std::size_t position) {
    const std::size_t last = cluster.size() - sizeof(std::uint32_t);
    return slot_of(load_le<std::uint32_t>(cluster.data() + std::min(position, last)));
  };
  const std::size_t start = first_run(cluster);
  return {slot_at(0), slot_at(start), slot_at(start + 1), slot_at(start + 2)};
}

constexpr std::size_t stream_distance = 128 * 1024;
static_assert(stream_distance >= sizeof(isal_zstream));
constexpr std::size_t stream_count = 8;

constexpr std::uint8_t slot_of_address(std::uint64_t address) {
  return slot_of(static_cast<std::uint32_t>(address >> 16));
}

// The hash of x ^ y is that of x ^ that of y: in memory aligned to its size, the slots of any two
// streams differ by the same bits wherever it is.
constexpr std::size_t different_slots() {
  std::array<bool, 256> seen{};
  for (std::size_t i = 0; i < stream_count; ++i) seen[slot_of_address(i * stream_distance)] = true;
  return static_cast<std::size_t>(std::ranges::count(seen, true));
}
static_assert(different_slots() > Slots{}.size(), "one stream is always free");

/// What a thread compresses with. Pages that are not touched, which is most of the streams, take no
/// memory.
class Streams {
 public:
  static constexpr std::uint32_t level_buffer_size =
      std::max(ISAL_DEF_LVL1_DEFAULT, ISAL_DEF_LVL2_DEFAULT);

  Streams() {
    if (!memory_ || !level_buffer_) throw Error::system_error(ENOMEM, "deflate");
  }

  isal_zstream& stream_for(Bytes cluster) {
    const Slots used = used_slots(cluster);
    std::size_t i = 0;
    while (i + 1 < stream_count && std::ranges::find(used, wrong_slot(i)) != used.end()) ++i;
    return *new (memory_.get() + i * stream_distance) isal_zstream;
  }

  std::uint8_t* level_buffer() { return level_buffer_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };

  static constexpr std::size_t size = stream_count * stream_distance;

  std::uint8_t wrong_slot(std::size_t i) const {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.get() + i * stream_distance);
    return slot_of_address(address);
  }

  std::unique_ptr<std::byte, Free> memory_{static_cast<std::byte*>(std::aligned_alloc(size, size))};
  std::unique_ptr<std::uint8_t[]> level_buffer_{new (std::nothrow) std::uint8_t[level_buffer_size]};
};

}  // namespace

std::size_t compress(unsigned level, Bytes cluster, std::span<std::byte> stored) {
  thread_local Streams streams;
  isal_zstream& stream = streams.stream_for(cluster);
  isal_deflate_stateless_init(&stream);
  stream.hist_bits = 0;  // no limit
  stream.level = level;
  stream.level_buf = streams.level_buffer();
  stream.level_buf_size = Streams::level_buffer_size;
  stream.end_of_stream = 1;
  stream.flush = NO_FLUSH;
  stream.gzip_flag = IGZIP_DEFLATE;
  stream.next_in = const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(cluster.data()));
  stream.avail_in = static_cast<std::uint32_t>(cluster.size());
  stream.next_out = reinterpret_cast<std::uint8_t*>(stored.data());
  stream.avail_out = static_cast<std::uint32_t>(stored.size());
  if (isal_deflate_stateless(&stream) != COMP_OK || stream.avail_in != 0) return 0;
  return stored.size() - stream.avail_out;
}

}  // namespace vise::codec::isal
