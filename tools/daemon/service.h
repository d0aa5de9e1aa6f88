// Being a service: leaving the terminal, telling the PID, telling the service manager.
#pragma once

#include <string>
#include <string_view>

namespace vise::tools {

/// --daemonize: the parent waits until the child is ready or has ended, and exits as it did.
class Daemonizer {
 public:
  /// Forks; returns in the child only. Before any thread exists. Throws Error.
  void fork_away();
  /// Lets the parent exit with 0, leaves its terminal and folder. Nothing without fork_away().
  void become_ready();

 private:
  int ready_fd_ = -1;
};

/// The file with our PID, locked while we run, removed at the end.
class PidFile {
 public:
  PidFile() = default;
  PidFile(const PidFile&) = delete;
  ~PidFile();
  /// Throws Error; EAGAIN's text if another process holds it.
  void write(const std::string& path);

 private:
  std::string path_;  // absolute
  int fd_ = -1;
};

/// Tells systemd's like ("READY=1"), where NOTIFY_SOCKET says that one wants to know.
void notify_service_manager(std::string_view state);

}  // namespace vise::tools
