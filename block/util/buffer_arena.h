// Memory for large buffers: regions of 4 MiB that are halved for smaller ones and put together
// again (a buddy allocator), so that what one size has touched serves the next, whatever that is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace vise {

/// For Buffer alone. May be called from any thread.
///
/// malloc() is no place for them: its aligned blocks leave crumbs behind and are hardly ever found
/// again, so that a bulk copy touched new pages all the time (132,000 faults in 2 GiB).
class BufferArena {
 public:
  static constexpr std::size_t smallest = 64u << 10;  // bytes
  static constexpr std::size_t largest = 4u << 20;

  BufferArena() = default;
  BufferArena(const BufferArena&) = delete;
  ~BufferArena();

  /// The one of this process. Lives until its end, since buffers may be freed very late.
  static BufferArena& shared();

  /// `size` bytes, a power of two from `smallest` to `largest`, aligned to a page. Null where there
  /// is no memory.
  std::byte* allocate(std::size_t size);
  /// Takes back what allocate(size) gave.
  void free(std::byte* data, std::size_t size);

  /// Bytes taken from the system.
  std::size_t held() const;

 private:
  static constexpr std::size_t units = largest / smallest;  // in a region
  static constexpr std::size_t orders = 7;                  // blocks of 2^order units
  static_assert(std::size_t{1} << (orders - 1) == units && units == 64);

  struct Region {
    std::byte* start;
    std::array<std::uint64_t, orders> free{};  // by order: the first units of the free blocks
    bool is_free() const { return free[orders - 1] != 0; }
  };

  Region* add_region();
  void give_back_spare_regions();

  mutable std::mutex mutex_;
  std::vector<Region> regions_;  // by address
};

}  // namespace vise
