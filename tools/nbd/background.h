// Being a server: going to the background, the pid file, signals, sockets from systemd.
#pragma once

#include <string>

#include "tools/common/output.h"
#include "util/file_descriptor.h"

namespace vise::tools {

/// --fork: the parent waits until the child is ready or has failed.
class Background {
 public:
  /// In the parent this does not return unless fork(2) fails (an Error): it ends with status 0 when
  /// the child has called ready(), else with that of the child. Call before any thread is started.
  void start();
  /// In the child: leaves session, folder, stdin, stdout and, unless told to keep it, stderr of the
  /// parent, which then ends. Does nothing without start().
  enum class Stderr { close, keep };
  void ready(Stderr stderr_fate);

 private:
  FileDescriptor parent_;  // a pipe to it
};

/// Throws Error that names the file.
void write_pid_file(const std::string& path);

/// A signalfd(2) that becomes readable with SIGTERM, SIGINT or SIGHUP, which no longer end the
/// program. Call before any thread is started.
FileDescriptor catch_termination();

/// The sockets that systemd has passed to this process; takes note of them out of the environment.
/// 0: none.
unsigned inherited_sockets();
constexpr int first_inherited_socket = 3;  // the file descriptor

}  // namespace vise::tools
