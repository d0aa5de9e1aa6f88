// Decoded clusters that were read in parts, so that sixteen 4 KiB reads cost one decompression.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>

#include "vise/buffer.h"
#include "vise/sync.h"
#include "vise/task.h"
#include "vise/types.h"

namespace vise::qcow2 {

/// Keyed by the host offset of the stored bytes; least recently used out first. Two readers of one
/// cluster wait for one decode.
class DecodedCache {
 public:
  explicit DecodedCache(std::uint64_t capacity) : capacity_(capacity) {}

  struct Entry {
    HostOffset host;
    Buffer cluster;  // all of it, or a part from its start
    AsyncEvent ready;
    std::exception_ptr error;
    bool cached = true;  // false: dropped, only its readers still hold it
    std::list<std::shared_ptr<Entry>>::iterator position;
  };

  enum class Extent { whole, head };
  using Decode = std::function<Task<Buffer>(Extent)>;

  /// At least the first `length` bytes of the cluster stored at `host`, decoded by `decode` if they
  /// are not here: a head may do, but who comes back for more of a cluster gets the whole. What
  /// `decode` throws, every waiting reader gets, and nothing is kept.
  Task<std::shared_ptr<Entry>> get(HostOffset host, std::uint64_t length, Decode decode);

  /// Forgets clusters whose stored bytes start inside `range`.
  void forget(HostRange range);

 private:
  void drop(Entry& entry);
  void evict();

  std::uint64_t capacity_;  // bytes of decoded data
  std::uint64_t bytes_ = 0;
  std::map<std::uint64_t, std::shared_ptr<Entry>> entries_;  // by host offset
  std::list<std::shared_ptr<Entry>> lru_;                    // most recent first
};

}  // namespace vise::qcow2
