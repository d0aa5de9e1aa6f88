// Bookkeeping of buffered parts of clusters.
#include "filter/write_buffer.h"

#include <algorithm>
#include <limits>

namespace vise {

void BufferedCluster::store(std::uint64_t offset, const ConstIoVec& data) {
  data.copy_to(data_.span().subspan(offset, data.size()));
  Part merged{offset, offset + data.size()};
  std::vector<Part> parts;
  for (const Part& part : valid_) {
    if (part.second < merged.first || part.first > merged.second) {
      parts.push_back(part);
    } else {
      merged = {std::min(part.first, merged.first), std::max(part.second, merged.second)};
    }
  }
  parts.insert(std::ranges::upper_bound(parts, merged), merged);
  valid_ = std::move(parts);
}

void BufferedCluster::overlay(std::uint64_t offset, const IoVec& to) const {
  const std::uint64_t end = offset + to.size();
  for (const auto& [part_from, part_to] : valid_) {
    const std::uint64_t from = std::max(part_from, offset);
    const std::uint64_t until = std::min(part_to, end);
    if (from < until) to.copy_from(data_.span().subspan(from, until - from), from - offset);
  }
}

std::vector<std::pair<std::uint64_t, std::uint64_t>> BufferedCluster::gaps() const {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> result;
  std::uint64_t at = 0;
  for (const auto& [from, to] : valid_) {
    if (from > at) result.emplace_back(at, from - at);
    at = to;
  }
  if (at < data_.size()) result.emplace_back(at, data_.size() - at);
  return result;
}

WriteBuffer::Entry WriteBuffer::find(std::uint64_t number) const {
  const auto found = entries_.find(number);
  return found == entries_.end() ? nullptr : found->second.entry;
}

WriteBuffer::Entry WriteBuffer::touch(std::uint64_t number, std::uint64_t length) {
  const auto found = entries_.find(number);
  if (found != entries_.end()) {
    lru_.splice(lru_.begin(), lru_, found->second.position);
    return found->second.entry;
  }
  lru_.push_front(number);
  auto entry = std::make_shared<BufferedCluster>(number, length);
  entries_.emplace(number, Slot{entry, lru_.begin()});
  bytes_ += length;
  return entry;
}

void WriteBuffer::drop(std::uint64_t number) {
  const auto found = entries_.find(number);
  if (found == entries_.end()) return;
  bytes_ -= found->second.entry->length();
  lru_.erase(found->second.position);
  entries_.erase(found);
}

std::vector<WriteBuffer::Entry> WriteBuffer::in_range(std::uint64_t first,
                                                      std::uint64_t last) const {
  std::vector<Entry> result;
  for (auto it = entries_.lower_bound(first); it != entries_.end() && it->first <= last; ++it) {
    result.push_back(it->second.entry);
  }
  return result;
}

std::vector<WriteBuffer::Entry> WriteBuffer::oldest(std::uint64_t bytes) const {
  std::vector<Entry> result;
  std::uint64_t sum = 0;
  for (auto it = lru_.rbegin(); it != lru_.rend() && sum < bytes; ++it) {
    const Entry& entry = entries_.at(*it).entry;
    if (entry->writing) continue;
    result.push_back(entry);
    sum += entry->length();
  }
  return result;
}

}  // namespace vise
