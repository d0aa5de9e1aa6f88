// Where a monitor's clients come from: what --chardev makes.
#pragma once

#include <memory>
#include <string>

#include "util/fd_watch.h"
#include "util/file_descriptor.h"
#include "vise/task.h"
#include "vise/value.h"

namespace vise {

/// One client's two directions, nonblocking.
struct CharStream {
  FileDescriptor input;
  FileDescriptor output;
};

class Chardev {
 public:
  virtual ~Chardev() = default;
  /// The next client; an invalid input once there will be none, or after stop().
  virtual Task<CharStream> next() = 0;
  /// Ends next(), and removes what was made in the file system.
  virtual void stop() = 0;
  /// Completes once a client is connected, for those who asked to wait for it.
  virtual Task<void> wait_if_asked() = 0;
  virtual bool is_stdio() const { return false; }
};

/// A chardev of "backend=socket,…" or "backend=stdio,…" options without their id, all strings as
/// --chardev has them. Throws Error(EINVAL) for bad options, and what listening and connecting
/// throw.
std::unique_ptr<Chardev> make_chardev(Value::Dict options);

}  // namespace vise
