// Gathers what compressed writes store into large host writes.
#pragma once

#include <exception>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/sync.h"
#include "vise/task.h"

namespace vise::qcow2 {

/// What many requests store meets here, packed bytes and whole clusters that did not shrink alike,
/// since in the file they lie between each other. What is adjacent there goes to it in one write.
///
/// Where the file takes whole units only (O_DIRECT), the last unit that was written in part is
/// remembered, so that appending behind it reads nothing. Writes that share a unit wait for each
/// other.
class Packer {
 public:
  explicit Packer(Child& file) : file_(file) {}

  /// Bytes that are gathered before they are sent.
  static constexpr std::size_t enough = 2 << 20;

  class Batch;
  /// The batches that hold the bytes of one request.
  using Receipt = std::vector<std::shared_ptr<Batch>>;

  /// What is behind the bytes, as far as the unit of the file goes in which they end.
  enum class Behind {
    unknown,
    nothing  // that anybody has written or is going to, but for what is appended to them
  };

  /// Takes `data`, which is to lie at `at`, and adds the batch it went to to `receipt`. It is read
  /// until that has settled, also if this throws.
  void append(HostOffset at, std::span<const std::byte> data, Receipt& receipt,
              Behind behind = Behind::unknown);

  /// What the file takes whole, in bytes.
  std::uint64_t unit() const;

  /// Sends what is gathered on its way: nobody is about to append.
  void send();

  /// Completes when all of it is written; throws what a write of its batches threw.
  Task<void> written(const Receipt& receipt);
  /// Completes when all of it is written or has failed.
  Task<void> settled(const Receipt& receipt);

  /// Waits for all writes on their way (their errors were told to their requests).
  Task<void> idle() { return writes_.join(); }

  /// Clusters have been given back: what is remembered of their bytes holds no more.
  void forget(HostRange clusters);

 private:
  struct Stretch;
  // The unit in which the last stretch ended, as far as it was written.
  struct Tail {
    HostOffset end;
    Buffer bytes;  // of the unit, up to `end`
  };

  // Who writes a unit in part: the last batch that does, and the one before.
  struct Writers {
    std::shared_ptr<Batch> last;
    std::shared_ptr<Batch> before;
  };

  void put(HostOffset at, std::span<const std::byte> data, Receipt& receipt);
  Task<void> write(std::shared_ptr<Batch> batch);
  static void gather(Batch& batch, std::list<Stretch>& stretches);
  Task<void> write_stretch(Stretch& stretch);
  void complete_units(Stretch& stretch, const std::shared_ptr<Batch>& batch, Behind behind);
  void remember_tail(const Stretch& stretch);

  Child& file_;
  std::shared_ptr<Batch> open_;
  std::optional<Tail> tail_;
  std::map<HostOffset, Writers> shared_units_;  // that are being written in part
  TaskScope writes_;
};

/// What is being gathered or on its way.
class Packer::Batch {
 public:
  void add(HostOffset at, std::span<const std::byte> data);
  std::size_t size() const { return size_; }

 private:
  friend Packer;
  struct Piece {
    HostOffset at;
    IoSegment bytes;
    HostOffset end() const { return at + bytes.size; }
  };
  std::vector<Piece> pieces_;
  std::size_t size_ = 0;                // bytes of all pieces
  std::vector<Buffer> copies_;          // what the small ones were copied to
  std::size_t copied_ = 0;              // bytes in the last of them
  std::optional<HostOffset> open_end_;  // nothing is behind this
  AsyncEvent written_;
  std::exception_ptr error_;
};

}  // namespace vise::qcow2
