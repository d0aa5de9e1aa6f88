// Loading, keeping and writing slices of tables.
#include "format/qcow2/table_cache.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace vise::qcow2 {

TableCache::TableCache(Child& file, std::uint64_t slice_size, std::uint64_t capacity, Events events,
                       OverlapGuard& guard, Metadata own)
    : file_(file),
      slice_size_(slice_size),
      capacity_(capacity),
      events_(events),
      guard_(guard),
      own_(own) {}

void TableCache::touch(Slice& slice) {
  lru_.splice(lru_.begin(), lru_, slice.position);
  slice.period = period_;
}

TableCache::Slice& TableCache::insert(HostOffset offset) {
  assert(offset.is_aligned(slice_size_));
  auto slice = std::make_unique<Slice>(offset, slice_size_);
  slice->period = period_;
  lru_.push_front(slice.get());
  slice->position = lru_.begin();
  Slice& result = *slice;
  slices_.emplace(offset.bytes(), std::move(slice));
  return result;
}

void TableCache::evict() {
  // From the least recently used on; dirty and pinned ones stay, so a few rounds may find nothing.
  // Looking at a bounded number keeps this cheap when most of the cache is dirty.
  constexpr int look_at_most = 32;
  int looked = 0;
  for (auto it = lru_.end(); it != lru_.begin() && looked < look_at_most; ++looked) {
    if (slices_.size() * slice_size_ <= capacity_) return;
    --it;
    Slice& slice = **it;
    if (!is_idle(slice)) continue;
    it = lru_.erase(it);
    slices_.erase(slice.offset.bytes());
  }
}

// Makes room for one more.
void TableCache::forget_walked() {
  constexpr std::uint64_t share = 8;
  const std::uint64_t most = std::max<std::uint64_t>(capacity_ / share / slice_size_, 2);
  while (!walked_.empty() && walked_.size() >= most) {
    const auto found = slices_.find(walked_.front());
    walked_.pop_front();
    if (found == slices_.end() || !found->second->once || !is_idle(*found->second)) continue;
    lru_.erase(found->second->position);
    slices_.erase(found);
  }
}

std::uint64_t TableCache::drop_unused() {
  std::uint64_t dropped = 0;
  // The least recently used come last, and so do those that were not used in this period.
  for (auto it = lru_.end(); it != lru_.begin();) {
    --it;
    Slice& slice = **it;
    if (slice.period == period_) break;
    if (!is_idle(slice)) continue;
    it = lru_.erase(it);
    slices_.erase(slice.offset.bytes());
    dropped += slice_size_;
  }
  ++period_;
  return dropped;
}

TableCache::Ref TableCache::try_get(HostOffset offset, Use use) {
  const auto found = slices_.find(offset.bytes());
  if (found == slices_.end() || found->second->loading) return {};
  if (use == Use::keep) found->second->once = false;
  touch(*found->second);
  return Ref(found->second.get());
}

Task<void> TableCache::load(Slice& slice) {
  std::exception_ptr failure;
  try {
    co_await file_.event(events_.load);
    co_await read_padded(file_, slice.offset, slice.data.span());
  } catch (...) {
    failure = std::current_exception();
  }
  slice.loading = false;
  slice.loaded.wake_all();
  if (failure) {
    // Those who waited look the slice up again, which loads it anew.
    lru_.erase(slice.position);
    slices_.erase(slice.offset.bytes());
    std::rethrow_exception(failure);
  }
}

Task<TableCache::Ref> TableCache::get(HostOffset offset, Use use) {
  for (;;) {
    Ref ref = try_get(offset, use);
    if (ref) co_return ref;
    const auto found = slices_.find(offset.bytes());
    if (found != slices_.end()) {
      co_await found->second->loaded.wait();
      continue;
    }
    if (use == Use::once) forget_walked();
    evict();
    Slice& slice = insert(offset);
    slice.loading = true;
    slice.once = use == Use::once;
    if (slice.once) walked_.push_back(offset.bytes());
    co_await load(slice);
  }
}

TableCache::Ref TableCache::insert_zeroed(HostOffset offset) {
  const auto found = slices_.find(offset.bytes());
  assert((found == slices_.end() || !found->second->loading) && "a table in use is not new");
  if (found == slices_.end()) evict();
  Slice& slice = found == slices_.end() ? insert(offset) : *found->second;
  std::memset(slice.data.data(), 0, slice_size_);
  Ref ref(&slice);
  mark_dirty(ref);
  return ref;
}

void TableCache::mark_dirty(Ref& ref) {
  Slice& slice = *ref.slice_;
  if (slice.version == slice.clean_version) ++dirty_count_;
  ++slice.version;
}

TableCache::Image TableCache::copy(const Slice& slice) const {
  Image image{slice.offset, slice.version, SliceMemory(slice_size_)};
  std::memcpy(image.data.data(), slice.data.data(), slice_size_);
  return image;
}

void TableCache::sort(std::vector<Image>& images) {
  std::sort(images.begin(), images.end(),
            [](const Image& a, const Image& b) { return a.offset < b.offset; });
}

Task<void> TableCache::write(std::vector<Image> images) {
  constexpr std::size_t most_at_once = 256;  // slices in one request
  std::vector<IoSegment> segments;
  for (std::size_t from = 0; from < images.size();) {
    std::size_t to = from + 1;
    segments.assign(1, IoSegment(images[from].data.span()));
    while (to < images.size() && to - from < most_at_once &&
           images[to].offset == images[to - 1].offset + slice_size_) {
      segments.push_back(IoSegment(images[to].data.span()));
      ++to;
    }
    const ConstIoVec data{std::span<const IoSegment>(segments)};
    co_await file_.event(events_.update);
    const HostRange place{images[from].offset, data.size()};
    if (const auto hit = guard_.find(place, own_)) co_await guard_.refuse(*hit, place);
    co_await file_.write(place.start, data);
    for (; from < to; ++from) {
      const auto found = slices_.find(images[from].offset.bytes());
      if (found == slices_.end()) continue;  // forgotten meanwhile
      Slice& slice = *found->second;
      if (slice.version == images[from].version && slice.version != slice.clean_version) {
        slice.clean_version = slice.version;
        --dirty_count_;
      }
    }
  }
}

void TableCache::forget(HostRange range) {
  for (HostOffset at = range.start.align_down(slice_size_); at < range.end(); at += slice_size_) {
    const auto found = slices_.find(at.bytes());
    if (found == slices_.end()) continue;
    Slice& slice = *found->second;
    // A reader from before the table was freed may still be loading it: harmless, nobody asks for
    // the slice again until the cluster becomes a new table, which starts with insert_zeroed().
    if (slice.loading) continue;
    if (slice.version != slice.clean_version) {
      slice.clean_version = slice.version;
      --dirty_count_;
    }
    if (slice.pins != 0) continue;
    lru_.erase(slice.position);
    slices_.erase(found);
  }
}

void TableCache::clear() {
  assert(dirty_count_ == 0);
  lru_.clear();
  walked_.clear();
  slices_.clear();
}

Task<void> read_padded(Child& file, HostOffset offset, std::span<std::byte> buffer) {
  const std::uint64_t size = file.size();
  const std::uint64_t there = offset.bytes() < size ? size - offset.bytes() : 0;
  const std::size_t length = std::min<std::uint64_t>(there, buffer.size());
  if (length > 0) co_await file.read(offset, IoVec(buffer.first(length)));
  std::ranges::fill(buffer.subspan(length), std::byte{0});
}

}  // namespace vise::qcow2
