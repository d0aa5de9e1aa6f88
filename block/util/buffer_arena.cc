#include "util/buffer_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cassert>

namespace vise {

namespace {

// Free regions that are kept: what a bulk copy uses between two of its ebbs.
constexpr std::size_t spare_regions = 8;

std::size_t order_of(std::size_t size) {
  assert(std::has_single_bit(size) && size >= BufferArena::smallest &&
         size <= BufferArena::largest);
  return static_cast<std::size_t>(std::countr_zero(size / BufferArena::smallest));
}

std::uint64_t bit(std::size_t unit) { return std::uint64_t{1} << unit; }

}  // namespace

BufferArena& BufferArena::shared() {
  static auto* const arena = new BufferArena;
  return *arena;
}

BufferArena::~BufferArena() {
  for (const Region& region : regions_) munmap(region.start, largest);
}

std::byte* BufferArena::allocate(std::size_t size) {
  const std::size_t order = order_of(size);
  const std::lock_guard<std::mutex> guard(mutex_);
  // The tightest block of all regions, the lowest if there are several: the others get free as a
  // whole then.
  Region* from = nullptr;
  std::size_t tightest = orders;
  for (Region& region : regions_) {
    for (std::size_t i = order; i < tightest; ++i) {
      if (region.free[i] == 0) continue;
      from = &region;
      tightest = i;
    }
  }
  if (from == nullptr) {
    from = add_region();
    if (from == nullptr) return nullptr;
    tightest = orders - 1;
  }
  const auto unit = static_cast<std::size_t>(std::countr_zero(from->free[tightest]));
  from->free[tightest] &= ~bit(unit);
  for (std::size_t i = tightest; i > order; --i) from->free[i - 1] |= bit(unit + (1u << (i - 1)));
  return from->start + unit * smallest;
}

void BufferArena::free(std::byte* data, std::size_t size) {
  std::size_t order = order_of(size);
  const std::lock_guard<std::mutex> guard(mutex_);
  const auto next = std::ranges::upper_bound(regions_, data, {}, &Region::start);
  assert(next != regions_.begin());
  Region& region = *(next - 1);
  std::size_t unit = static_cast<std::size_t>(data - region.start) / smallest;
  assert(unit < units && unit % (std::size_t{1} << order) == 0);
  while (order + 1 < orders) {
    const std::size_t buddy = unit ^ (std::size_t{1} << order);
    if ((region.free[order] & bit(buddy)) == 0) break;
    region.free[order] &= ~bit(buddy);
    unit = std::min(unit, buddy);
    ++order;
  }
  region.free[order] |= bit(unit);
  if (region.is_free()) give_back_spare_regions();
}

// Call with mutex_ held, as the next two.
BufferArena::Region* BufferArena::add_region() {
  void* const memory =
      mmap(nullptr, largest, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  Region region{static_cast<std::byte*>(memory)};
  region.free[orders - 1] = bit(0);
  const auto place = std::ranges::upper_bound(regions_, region.start, {}, &Region::start);
  return &*regions_.insert(place, region);
}

void BufferArena::give_back_spare_regions() {
  std::size_t kept = 0;
  std::erase_if(regions_, [&](const Region& region) {
    if (!region.is_free() || ++kept <= spare_regions) return false;
    munmap(region.start, largest);
    return true;
  });
}

std::size_t BufferArena::held() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return regions_.size() * largest;
}

}  // namespace vise
