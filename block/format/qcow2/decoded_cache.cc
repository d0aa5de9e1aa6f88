// One decode for many partial reads of a compressed cluster.
#include "format/qcow2/decoded_cache.h"

#include <utility>

namespace vise::qcow2 {

Task<std::shared_ptr<DecodedCache::Entry>> DecodedCache::get(HostOffset host, std::uint64_t length,
                                                             Decode decode) {
  Extent extent = Extent::head;
  for (;;) {
    const auto found = entries_.find(host.bytes());
    if (found == entries_.end()) break;
    std::shared_ptr<Entry> entry = found->second;
    lru_.splice(lru_.begin(), lru_, entry->position);
    co_await entry->ready.wait();
    if (entry->error) std::rethrow_exception(entry->error);
    if (entry->cluster.size() >= length) co_return entry;
    drop(*entry);
    extent = Extent::whole;
  }

  auto entry = std::make_shared<Entry>();
  entry->host = host;
  entries_.emplace(host.bytes(), entry);
  lru_.push_front(entry);
  entry->position = lru_.begin();
  try {
    Buffer cluster = co_await decode(extent);
    entry->cluster = std::move(cluster);
  } catch (...) {
    entry->error = std::current_exception();
  }
  if (entry->cached) bytes_ += entry->cluster.size();
  entry->ready.set();
  if (entry->error) {
    drop(*entry);
    std::rethrow_exception(entry->error);
  }
  evict();
  co_return entry;
}

void DecodedCache::drop(Entry& entry) {
  if (!std::exchange(entry.cached, false)) return;
  bytes_ -= entry.cluster.size();
  const auto position = entry.position;
  entries_.erase(entry.host.bytes());
  lru_.erase(position);  // may be the last owner
}

void DecodedCache::evict() {
  for (auto it = lru_.end(); bytes_ > capacity_ && it != lru_.begin();) {
    --it;
    if (!(*it)->ready.is_set()) continue;
    Entry& entry = **it;
    ++it;
    drop(entry);
  }
}

void DecodedCache::forget(HostRange range) {
  const auto end = entries_.lower_bound(range.end().bytes());
  for (auto it = entries_.lower_bound(range.start.bytes()); it != end;) {
    Entry& entry = *(it++)->second;
    drop(entry);
  }
}

}  // namespace vise::qcow2
