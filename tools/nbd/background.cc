#include "tools/nbd/background.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <utility>

#include "vise/error.h"

namespace vise::tools {

namespace {

int status_of(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1;
}

}  // namespace

void Background::start() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw Error::system_error(errno, "--fork");
  const FileDescriptor from_child(ends[0]);
  FileDescriptor to_parent(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) throw Error::system_error(errno, "--fork");
  if (child == 0) {
    parent_ = std::move(to_parent);
    return;
  }
  to_parent = FileDescriptor();
  char byte = 0;
  ssize_t count = 0;
  do {
    count = ::read(from_child.get(), &byte, 1);
  } while (count < 0 && errno == EINTR);
  ::_exit(count == 1 ? 0 : status_of(child));
}

void Background::ready(Stderr stderr_fate) {
  if (!parent_.valid()) return;
  ::setsid();
  if (::chdir("/") != 0) throw Error::system_error(errno, "--fork");
  const FileDescriptor null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) throw Error::system_error(errno, "/dev/null");
  ::dup2(null.get(), STDIN_FILENO);
  ::dup2(null.get(), STDOUT_FILENO);
  if (stderr_fate == Stderr::close) ::dup2(null.get(), STDERR_FILENO);
  const char byte = 0;
  if (::write(parent_.get(), &byte, 1) != 1) throw Error::system_error(errno, "--fork");
  parent_ = FileDescriptor();
}

void write_pid_file(const std::string& path) {
  const auto fail = [&] { throw Error::system_error(errno, fmt::format("Pid file '{}'", path)); };
  const FileDescriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!file.valid()) fail();
  const std::string text = fmt::format("{}\n", ::getpid());
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) fail();
}

FileDescriptor catch_termination() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  FileDescriptor fd(::signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!fd.valid()) throw Error::system_error(errno, "signalfd");
  return fd;
}

unsigned inherited_sockets() {
  const char* pid = std::getenv("LISTEN_PID");
  const char* count = std::getenv("LISTEN_FDS");
  unsigned result = 0;
  if (pid != nullptr && count != nullptr &&
      std::strtoul(pid, nullptr, 10) == unsigned(::getpid())) {
    result = static_cast<unsigned>(std::strtoul(count, nullptr, 10));
  }
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");
  return result;
}

}  // namespace vise::tools
