// File I/O for coroutines: io_uring where the kernel allows it, else threads. Both engines do the
// same; util_io_engine_test.cc runs one table of tests over the two.
#pragma once

#include <sys/uio.h>

#include <coroutine>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "vise/event_loop.h"
#include "vise/io_vec.h"
#include "vise/task.h"

namespace vise {

/// Awaitable operations on file descriptors. Belongs to one event loop, on whose thread all members
/// are called and all awaiting coroutines continue. Offsets are bytes from the start of the file.
/// Failures are thrown as Error with the errno's text and no context. File descriptors and memory
/// are borrowed until the task completes; nothing may be in flight at destruction (asserted).
class IoEngine {
 public:
  enum class Durability { cached, data_sync };
  /// Where data goes to and comes from: the device, with O_DIRECT, or the page cache.
  enum class Medium { device, page_cache };

  virtual ~IoEngine() = default;

  /// "io_uring" or "threads". Whether the kernel refuses the ring is seen with the first read or
  /// write that is for it.
  virtual std::string_view name() const = 0;

  /// Fills `data`; returns how many bytes there were, less than data.size() only at the end of the
  /// file. Small reads from the page cache are had without waiting.
  Task<std::uint64_t> read(int fd, IoVec data, std::uint64_t offset,
                           Medium medium = Medium::device);

  /// Writes all of `data`, with data_sync as if followed by sync(). Threads write to the page cache
  /// one request per descriptor at a time.
  Task<void> write(int fd, ConstIoVec data, std::uint64_t offset,
                   Durability durability = Durability::cached, Medium medium = Medium::device);

  /// fdatasync(2).
  Task<void> sync(int fd);

  /// fallocate(2) with `mode`. Gives 0 or the errno: that a file system cannot do it is an answer.
  Task<int> allocate(int fd, int mode, std::uint64_t offset, std::uint64_t length);

  /// Runs a blocking system call (or a few) on a thread and gives what it returned. What `function`
  /// refers to must live until then; it must not throw.
  Task<std::int64_t> call(std::function<std::int64_t()> function);

 protected:
  enum class Operation : std::uint8_t { read, write, sync, allocate, call };

  /// One operation in flight; lives in the awaiting coroutine's frame.
  struct Request {
    Operation operation;
    Durability durability = Durability::cached;
    Medium medium = Medium::device;
    int fd = -1;
    int mode = 0;                    // of allocate
    const iovec* vectors = nullptr;  // of read and write
    unsigned vector_count = 0;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;  // of allocate
    const std::function<std::int64_t()>* function = nullptr;

    std::int64_t result = 0;  // as the kernel's: a count, or a negative errno
    std::coroutine_handle<> waiter;
    Request* next = nullptr;  // in a queue of the engine
  };

  /// Starts `request`; the engine sets `result` and resumes `waiter` from the loop, never inline.
  virtual void start(Request& request) = 0;
  /// For an engine that leaves some operations to another.
  static void start_on(IoEngine& other, Request& request) { other.start(request); }

 private:
  struct Awaiter;
  Task<std::int64_t> transfer(Operation operation, int fd, ConstIoVec data, std::uint64_t offset,
                              Durability durability, Medium medium);
  std::uint64_t read_cached(int fd, const IoVec& data, std::uint64_t offset);

  unsigned cached_reads_ = 0;  // in a row
  unsigned skip_cache_ = 0;    // so many reads do not look there first
  unsigned next_skip_ = 1;     // doubles with each miss
};

/// Threads are started as needed, up to 64, and stay.
std::unique_ptr<IoEngine> make_io_threads(EventLoop& loop);

/// Null if Vise was built without io_uring. `threads` does what the ring cannot, and all if the
/// kernel refuses it; must outlive the result.
std::unique_ptr<IoEngine> make_io_uring(EventLoop& loop, IoEngine& threads);

}  // namespace vise
