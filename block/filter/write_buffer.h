// Parts of clusters that wait in memory until their cluster is complete.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "vise/buffer.h"
#include "vise/io_vec.h"
#include "vise/types.h"

namespace vise {

/// What has been written to one cluster and not reached the node below yet.
class BufferedCluster {
 public:
  BufferedCluster(std::uint64_t number, std::uint64_t length) : number_(number), data_(length) {}

  std::uint64_t number() const { return number_; }
  std::uint64_t length() const { return data_.size(); }  // bytes; the disk's last may be shorter
  std::span<std::byte> data() { return data_.span(); }

  void store(std::uint64_t offset, const ConstIoVec& data);
  bool is_complete() const { return valid_.size() == 1 && valid_.front() == Part{0, data_.size()}; }
  /// Copies what is held of [offset, offset + to.size()) over `to`.
  void overlay(std::uint64_t offset, const IoVec& to) const;
  /// The stretches that are not held: offset and length.
  std::vector<std::pair<std::uint64_t, std::uint64_t>> gaps() const;

  bool writing = false;  // on its way down; still what readers see

 private:
  using Part = std::pair<std::uint64_t, std::uint64_t>;  // from, to
  std::uint64_t number_;
  Buffer data_;
  std::vector<Part> valid_;  // sorted, disjoint, not touching
};

/// The clusters that are held, by number, and in order of their last use.
class WriteBuffer {
 public:
  using Entry = std::shared_ptr<BufferedCluster>;

  /// Null if nothing is held of the cluster.
  Entry find(std::uint64_t number) const;
  /// The entry, made if there is none; becomes the most recently used.
  Entry touch(std::uint64_t number, std::uint64_t length);
  void drop(std::uint64_t number);

  bool empty() const { return entries_.empty(); }
  std::uint64_t bytes() const { return bytes_; }
  /// All that are held of clusters [first, last].
  std::vector<Entry> in_range(std::uint64_t first, std::uint64_t last) const;
  /// The least recently used ones that are not being written, at least `bytes` together.
  std::vector<Entry> oldest(std::uint64_t bytes) const;

 private:
  struct Slot {
    Entry entry;
    std::list<std::uint64_t>::iterator position;
  };
  std::map<std::uint64_t, Slot> entries_;
  std::list<std::uint64_t> lru_;  // cluster numbers, most recent first
  std::uint64_t bytes_ = 0;
};

}  // namespace vise
