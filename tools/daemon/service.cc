#include "tools/daemon/service.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "vise/error.h"

namespace vise::tools {

void Daemonizer::fork_away() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw Error::system_error(errno, "pipe");
  const pid_t child = fork();
  if (child < 0) throw Error::system_error(errno, "fork");
  if (child > 0) {
    close(ends[1]);
    char ready = 0;
    ssize_t length = 0;
    do {
      length = read(ends[0], &ready, 1);
    } while (length < 0 && errno == EINTR);
    if (length == 1) _exit(0);
    int status = 0;
    waitpid(child, &status, 0);
    _exit(1);
  }
  close(ends[0]);
  ready_fd_ = ends[1];
  setsid();
}

void Daemonizer::become_ready() {
  if (ready_fd_ < 0) return;
  if (chdir("/") != 0) throw Error::system_error(errno, "Could not change to '/'");
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) throw Error::system_error(errno, "Could not open /dev/null");
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(null, fd);
  close(null);
  [[maybe_unused]] const ssize_t written = ::write(ready_fd_, "", 1);
  close(ready_fd_);
  ready_fd_ = -1;
}

void PidFile::write(const std::string& path) {
  const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  if (fd < 0) throw Error::system_error(errno, fmt::format("Cannot open pid file '{}'", path));
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  const std::string text = fmt::format("{}\n", getpid());
  const bool done = fcntl(fd, F_SETLK, &lock) == 0 && ftruncate(fd, 0) == 0 &&
                    ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (!done) {
    const int code = errno;
    close(fd);
    throw Error::system_error(code, fmt::format("Cannot write to pid file '{}'", path));
  }
  fd_ = fd;
  path_ = std::filesystem::absolute(path).string();
}

PidFile::~PidFile() {
  if (fd_ < 0) return;
  unlink(path_.c_str());
  close(fd_);
}

void notify_service_manager(std::string_view state) {
  const char* name = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (name == nullptr || (name[0] != '/' && name[0] != '@') ||
      std::strlen(name) >= sizeof address.sun_path) {
    return;
  }
  std::memcpy(address.sun_path, name, std::strlen(name));
  if (name[0] == '@') address.sun_path[0] = '\0';
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(name));
  sendto(fd, state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address),
         length);
  close(fd);
}

}  // namespace vise::tools
