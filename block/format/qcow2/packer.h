// Gathers what compressed writes store into large host writes.
#pragma once

#include <exception>
#include <memory>
#include <span>
#include <vector>

#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/sync.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// Stored bytes of many requests, laid one behind the other, go to the file in one write. Two
/// streams are open at a time: packed bytes, and whole clusters that did not shrink.
class Packer {
 public:
  explicit Packer(Child& file) : file_(file) {}

  enum class Stream { bytes, clusters };
  static constexpr std::size_t chunk_size = 1 << 20;

  /// One write that is being gathered or on its way.
  struct Chunk {
    HostOffset start;
    Buffer data;
    std::size_t used = 0;
    AsyncEvent written;
    std::exception_ptr error;
  };
  /// The chunks that hold the bytes of one request.
  using Receipt = std::vector<std::shared_ptr<Chunk>>;

  /// Copies `data`, which is to lie at `at`, and adds the chunks it went to to `receipt`.
  void append(Stream stream, HostOffset at, std::span<const std::byte> data, Receipt& receipt);

  /// Sends what is gathered on its way: nobody is about to append.
  void send();

  /// Completes when all of it is written; throws what a write threw.
  Task<void> written(const Receipt& receipt);
  /// Completes when all of it is written or has failed.
  Task<void> settled(const Receipt& receipt);

  /// Waits for all writes on their way (their errors were told to their requests).
  Task<void> idle() { return writes_.join(); }

 private:
  void send(std::shared_ptr<Chunk>& chunk);
  Task<void> write(std::shared_ptr<Chunk> chunk);

  Child& file_;
  std::shared_ptr<Chunk> open_[2];  // by Stream
  TaskScope writes_;
};

}  // namespace vise::qcow2
