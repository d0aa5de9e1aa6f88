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

/// What many requests store meets here, packed bytes and whole clusters that did not shrink alike,
/// since in the file they lie between each other. What is adjacent there goes to it in one write.
class Packer {
 public:
  explicit Packer(Child& file) : file_(file) {}

  /// Bytes that are gathered before they are sent.
  static constexpr std::size_t enough = 2 << 20;

  /// What is being gathered or on its way.
  class Batch {
   public:
    /// See Packer::append().
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
    std::size_t size_ = 0;           // bytes of all pieces
    std::vector<Buffer> copies_;     // what the small ones were copied to
    std::size_t copied_ = 0;         // bytes in the last of them
    std::vector<IoSegment> sorted_;  // what is written, in the order of the file
    AsyncEvent written_;
    std::exception_ptr error_;
  };
  /// The batches that hold the bytes of one request.
  using Receipt = std::vector<std::shared_ptr<Batch>>;

  /// Takes `data`, which is to lie at `at`, and adds the batch it went to to `receipt`. It is read
  /// until that has settled, also if this throws.
  void append(HostOffset at, std::span<const std::byte> data, Receipt& receipt);

  /// Sends what is gathered on its way: nobody is about to append.
  void send();

  /// Completes when all of it is written; throws what a write of its batches threw.
  Task<void> written(const Receipt& receipt);
  /// Completes when all of it is written or has failed.
  Task<void> settled(const Receipt& receipt);

  /// Waits for all writes on their way (their errors were told to their requests).
  Task<void> idle() { return writes_.join(); }

 private:
  Task<void> write(std::shared_ptr<Batch> batch);
  Task<void> write_stretch(HostOffset start, std::span<const IoSegment> pieces);

  Child& file_;
  std::shared_ptr<Batch> open_;
  TaskScope writes_;
};

}  // namespace vise::qcow2
