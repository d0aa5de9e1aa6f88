// A cache of slices of metadata tables (L2 tables, refcount blocks), least recently used out first.
// It never writes by itself: what is dirty leaves it in the order that commit.cc prescribes.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "format/qcow2/overlap.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/sync.h"
#include "vise/task.h"
#include "vise/types.h"

namespace vise::qcow2 {

/// Memory of a slice. A Buffer has at least a page; images of tiny clusters have slices of 512
/// bytes, tens of thousands of them.
class SliceMemory {
 public:
  explicit SliceMemory(std::size_t size) : size_(size) {
    if (size < Buffer::alignment) {
      small_ = std::make_unique<std::byte[]>(size);
    } else {
      large_ = Buffer(size);
    }
  }
  std::byte* data() { return small_ ? small_.get() : large_.data(); }
  const std::byte* data() const { return small_ ? small_.get() : large_.data(); }
  std::span<std::byte> span() { return {data(), size_}; }

 private:
  std::size_t size_;
  std::unique_ptr<std::byte[]> small_;
  Buffer large_;
};

class TableCache {
 public:
  /// Slices of `slice_size` bytes (a power of two, at most a cluster) of tables in `file`; about
  /// `capacity` bytes are kept, more only while dirty or in use.
  /// What the file is told before a slice is read or written.
  struct Events {
    Event load;
    Event update;
  };
  /// Before a slice is written, `guard` is asked whether anything but `own` lies there.
  TableCache(Child& file, std::uint64_t slice_size, std::uint64_t capacity, Events events,
             OverlapGuard& guard, Metadata own);
  TableCache(const TableCache&) = delete;

 private:
  struct Slice {
    Slice(HostOffset at, std::uint64_t size) : offset(at), data(size) {}

    HostOffset offset;
    SliceMemory data;
    std::uint64_t version = 0;        // counts changes
    std::uint64_t clean_version = 0;  // the version that the file has
    unsigned pins = 0;
    std::uint64_t period = 0;  // the last one it was used in
    bool loading = false;
    bool once = false;                     // nobody but a walk has used it
    std::list<Slice*>::iterator position;  // in lru_
    WaitQueue loaded;
  };

 public:
  /// Keeps a slice in the cache while it lives. The content may change across any co_await.
  class Ref {
   public:
    Ref() = default;
    Ref(Ref&& other) noexcept : slice_(std::exchange(other.slice_, nullptr)) {}
    Ref& operator=(Ref&& other) noexcept {
      std::swap(slice_, other.slice_);
      return *this;
    }
    ~Ref() {
      if (slice_ != nullptr) --slice_->pins;
    }
    explicit operator bool() const { return slice_ != nullptr; }
    std::byte* data() { return slice_->data.data(); }
    const std::byte* data() const { return slice_->data.data(); }
    HostOffset offset() const { return slice_->offset; }

   private:
    friend class TableCache;
    explicit Ref(Slice* slice) : slice_(slice) { ++slice->pins; }
    Slice* slice_ = nullptr;
  };

  std::uint64_t slice_size() const { return slice_size_; }
  std::uint64_t capacity() const { return capacity_; }
  void set_capacity(std::uint64_t bytes) { capacity_ = bytes; }
  /// Nothing may be dirty or in use: all is forgotten.
  void set_slice_size(std::uint64_t bytes) {
    clear();
    slice_size_ = bytes;
  }

  /// A walk over all tables looks at each slice once: of those that it reads, an eighth of the
  /// cache remembers the last, unless somebody uses them otherwise. Fresh memory costs more than
  /// the reading.
  enum class Use { keep, once };

  /// The slice at `offset` (a multiple of the slice size) if it is here; else an empty Ref.
  Ref try_get(HostOffset offset, Use use = Use::keep);
  /// Reads the slice if it is not here. What lies beyond the end of the file reads as zeros.
  Task<Ref> get(HostOffset offset, Use use = Use::keep);
  /// A slice of a new table: zeros, not read from the file.
  Ref insert_zeroed(HostOffset offset);

  /// To be called after every change, before the next co_await.
  void mark_dirty(Ref& ref);

  /// What a dirty slice held at one moment, on its way to the file.
  struct Image {
    HostOffset offset;
    std::uint64_t version;
    SliceMemory data;
  };
  /// Copies all dirty slices for which `wanted(offset)` holds, sorted by offset.
  template <class F>
  std::vector<Image> dirty_images(F wanted) const {
    std::vector<Image> images;
    for (const auto& [offset, slice] : slices_) {
      if (slice->version != slice->clean_version && wanted(slice->offset)) {
        images.push_back(copy(*slice));
      }
    }
    sort(images);
    return images;
  }
  /// Writes images, adjacent ones in one request; slices not changed meanwhile become clean.
  Task<void> write(std::vector<Image> images);

  std::uint64_t dirty_bytes() const { return dirty_count_ * slice_size_; }
  /// Forgets the slices of a table that is no longer in use, dirty or not.
  void forget(HostRange range);
  /// Forgets the slices that nobody has used since the last call and that need not be
  /// written or waited for. Returns how many bytes they had.
  std::uint64_t drop_unused();
  std::size_t slice_count() const { return slices_.size(); }
  /// Forgets everything (asserts that nothing is dirty).
  void clear();

 private:
  static void sort(std::vector<Image>& images);
  Image copy(const Slice& slice) const;
  Slice& insert(HostOffset offset);
  void touch(Slice& slice);
  void evict();
  bool is_idle(const Slice& slice) const {
    return slice.pins == 0 && !slice.loading && slice.version == slice.clean_version;
  }
  void forget_walked();
  Task<void> load(Slice& slice);

  Child& file_;
  std::uint64_t slice_size_;
  std::uint64_t capacity_;  // bytes
  Events events_;
  OverlapGuard& guard_;
  Metadata own_;
  std::uint64_t dirty_count_ = 0;
  std::uint64_t period_ = 0;  // counts calls of drop_unused()
  std::unordered_map<std::uint64_t, std::unique_ptr<Slice>> slices_;  // by host offset
  std::deque<std::uint64_t> walked_;  // loaded with Use::once, oldest first
  std::list<Slice*> lru_;             // most recent first
};

/// Reads [offset, offset + buffer.size()) of `file`; beyond its end there are zeros, as the format
/// wants it of data and metadata alike.
Task<void> read_padded(Child& file, HostOffset offset, std::span<std::byte> buffer);

}  // namespace vise::qcow2
