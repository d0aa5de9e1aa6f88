#include "monitor/chardev.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "util/socket.h"
#include "util/value_reader.h"
#include "vise/error.h"
#include "vise/options.h"

namespace vise {

namespace {

FileDescriptor duplicate(int fd) {
  const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) throw Error::system_error(errno, "Could not duplicate a file descriptor");
  return FileDescriptor(copy);
}

class SocketServer final : public Chardev {
 public:
  enum class Wait { no, yes };

  SocketServer(std::vector<FileDescriptor> listeners, std::string path, Wait wait)
      : listeners_(std::move(listeners)),
        path_(std::move(path)),
        wait_(wait),
        watch_(listeners_.front().get(), FdWatch::Until::readable) {}

  Task<CharStream> next() override {
    while (!watch_.cancelled()) {
      std::optional<FileDescriptor> client = accept_from(listeners_.front().get());
      if (client) {
        CharStream stream;
        stream.output = duplicate(client->get());
        stream.input = std::move(*client);
        co_return stream;
      }
      co_await watch_.wait();
    }
    co_return CharStream();
  }

  Task<void> wait_if_asked() override {
    if (wait_ == Wait::yes) co_await watch_.wait();
  }

  void stop() override {
    watch_.cancel();
    if (!path_.empty()) unlink(path_.c_str());
    path_.clear();
  }

 private:
  std::vector<FileDescriptor> listeners_;  // one: of several addresses the first
  std::string path_;                       // of the socket that is ours to remove
  const Wait wait_;
  FdWatch watch_;
};

// One client and no other: a connected socket, or stdin and stdout.
class SingleStream final : public Chardev {
 public:
  enum class Kind { socket, stdio };
  SingleStream(CharStream stream, Kind kind) : stream_(std::move(stream)), kind_(kind) {}

  Task<CharStream> next() override { co_return std::move(stream_); }
  Task<void> wait_if_asked() override { co_return; }
  void stop() override {}
  bool is_stdio() const override { return kind_ == Kind::stdio; }

 private:
  CharStream stream_;
  const Kind kind_;
};

// A description of its own, so that O_NONBLOCK does not show in other programs that share ours.
FileDescriptor own_description(int fd, int mode) {
  struct stat status = {};
  if (fstat(fd, &status) == 0 && !S_ISREG(status.st_mode)) {
    const std::string path = fmt::format("/proc/self/fd/{}", fd);
    const int own = open(path.c_str(), mode | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (own >= 0) return FileDescriptor(own);
  }
  FileDescriptor copy = duplicate(fd);
  fcntl(copy.get(), F_SETFL, fcntl(copy.get(), F_GETFL) | O_NONBLOCK);
  return copy;
}

std::unique_ptr<Chardev> make_stdio() {
  CharStream stream;
  stream.input = own_description(STDIN_FILENO, O_RDONLY);
  stream.output = own_description(STDOUT_FILENO, O_WRONLY);
  return std::make_unique<SingleStream>(std::move(stream), SingleStream::Kind::stdio);
}

std::optional<std::string> take_string(Value::Dict& options, std::string_view name) {
  const std::optional<Value> value = options.take(name);
  if (!value) return std::nullopt;
  return ValueReader(*value, {}, name).string();
}

std::optional<bool> take_bool(Value::Dict& options, std::string_view name) {
  const std::optional<Value> value = options.take(name);
  if (!value) return std::nullopt;
  return ValueReader(*value, {}, name).boolean();
}

// The descriptors a service manager hands over start at 3, and may have names.
FileDescriptor inherited_socket(const std::string& text) {
  int fd = -1;
  if (!text.empty() && text.find_first_not_of("0123456789") == std::string::npos &&
      text.size() < 8) {
    fd = std::atoi(text.c_str());
  } else if (const char* list = std::getenv("LISTEN_FDNAMES")) {
    std::string_view rest = list;
    for (int number = 3; fd < 0; ++number) {
      const std::size_t end = rest.find(':');
      if (rest.substr(0, end) == text) fd = number;
      if (end == std::string_view::npos) break;
      rest.remove_prefix(end + 1);
    }
  }
  if (fd < 0) throw Error(EINVAL, fmt::format("There is no file descriptor '{}'", text));
  prepare_socket(fd);
  return FileDescriptor(fd);
}

std::unique_ptr<Chardev> make_socket(Value::Dict& options) {
  const auto path = take_string(options, "path");
  const auto host = take_string(options, "host");
  const auto port = take_string(options, "port");
  const auto fd = take_string(options, "fd");
  const int given = int{path.has_value()} + int{host || port} + int{fd.has_value()};
  if (given != 1) {
    throw Error(EINVAL, "A socket chardev needs one of 'path', 'host' with 'port', and 'fd'");
  }
  SocketAddress address;
  if (path) {
    // Removed at the end, when the working directory may be another.
    address = SocketAddress::local(*path);
    address.abstract_name = take_bool(options, "abstract").value_or(false);
    if (!address.abstract_name) address.path = std::filesystem::absolute(*path).string();
  } else if (!fd) {
    if (!port) throw Error(EINVAL, "Parameter 'port' is missing");
    address = SocketAddress::inet(host.value_or(""), *port);
    address.ipv4 = take_bool(options, "ipv4");
    address.ipv6 = take_bool(options, "ipv6");
  }
  const bool server = take_bool(options, "server").value_or(false);
  const auto wait = take_bool(options, "wait");
  if (wait && !server)
    throw Error(EINVAL, "'wait' is an option of servers: 'server=on' is missing");
  if (!options.empty()) fail_unexpected({}, options.begin()->first, {});
  if (server) {
    std::vector<FileDescriptor> listeners;
    if (fd) {
      listeners.push_back(inherited_socket(*fd));
    } else {
      listeners = listen_on(address);
    }
    const std::string ours = path && !address.abstract_name ? address.path : std::string();
    const auto waiting = wait.value_or(true) ? SocketServer::Wait::yes : SocketServer::Wait::no;
    return std::make_unique<SocketServer>(std::move(listeners), ours, waiting);
  }
  CharStream stream;
  stream.input = fd ? inherited_socket(*fd) : connect_to(address);
  prepare_socket(stream.input.get());
  stream.output = duplicate(stream.input.get());
  return std::make_unique<SingleStream>(std::move(stream), SingleStream::Kind::socket);
}

}  // namespace

std::unique_ptr<Chardev> make_chardev(Value::Dict options) {
  const auto backend = take_string(options, "backend");
  if (!backend) throw Error(EINVAL, "chardev: 'backend' is missing");
  if (*backend == "socket") return make_socket(options);
  if (*backend != "stdio") {
    throw Error(EINVAL, fmt::format("'{}' is not a valid char driver name: must be socket or stdio",
                                    *backend));
  }
  if (!options.empty()) fail_unexpected({}, options.begin()->first, {});
  return make_stdio();
}

}  // namespace vise
