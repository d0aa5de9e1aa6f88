#include "util/socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>

#include "vise/error.h"

namespace vise {

namespace {

constexpr int backlog = 128;

FileDescriptor new_socket(int family) {
  FileDescriptor fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) throw Error::system_error(errno, "Failed to make a socket");
  return fd;
}

void set_flag(int fd, int level, int option) {
  const int on = 1;
  ::setsockopt(fd, level, option, &on, sizeof on);  // where it does not apply, it is not needed
}

// 0: none.
void set_send_limit(int fd, time_t seconds) {
  const timeval limit{.tv_sec = seconds, .tv_usec = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

bool is_inet(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return false;
  return address.ss_family == AF_INET || address.ss_family == AF_INET6;
}

struct LocalAddress {
  sockaddr_un address{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

LocalAddress local_address(const SocketAddress& address) {
  LocalAddress result;
  const std::size_t room = sizeof result.address.sun_path - 1;
  if (address.path.empty() || address.path.size() > room) {
    throw Error(EINVAL, fmt::format("Socket path '{}' has {} bytes, allowed are 1 to {}",
                                    address.path, address.path.size(), room));
  }
  result.address.sun_family = AF_UNIX;
  char* path = result.address.sun_path + (address.abstract_name ? 1 : 0);
  std::memcpy(path, address.path.data(), address.path.size());
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address.path.size() + 1);
  return result;
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const SocketAddress& address, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  const bool no_ipv4 = address.ipv4 == false || (address.ipv6 == true && address.ipv4 != true);
  const bool no_ipv6 = address.ipv6 == false || (address.ipv4 == true && address.ipv6 != true);
  if (no_ipv4 && no_ipv6) throw Error(EINVAL, "Both IPv4 and IPv6 are switched off");
  hints.ai_family = no_ipv4 ? AF_INET6 : no_ipv6 ? AF_INET : AF_UNSPEC;
  addrinfo* list = nullptr;
  const char* host = address.host.empty() ? nullptr : address.host.c_str();
  const int status = ::getaddrinfo(host, address.port.c_str(), &hints, &list);
  if (status != 0) {
    throw Error(EINVAL, fmt::format("Address '{}' cannot be resolved: {}", address.text(),
                                    ::gai_strerror(status)));
  }
  return AddressList(list, &::freeaddrinfo);
}

// A socket file that nobody listens on any more is in the way; anything else stays.
void remove_stale(const SocketAddress& address, const LocalAddress& local) {
  struct stat status{};
  if (::lstat(address.path.c_str(), &status) != 0) return;
  if (!S_ISSOCK(status.st_mode)) {
    throw Error(EEXIST, fmt::format("'{}' exists and is no socket", address.path));
  }
  const FileDescriptor probe = new_socket(AF_UNIX);
  ::fcntl(probe.get(), F_SETFL, O_NONBLOCK);  // a full queue also means that somebody listens
  if (::connect(probe.get(), local.get(), local.length) == 0 || errno != ECONNREFUSED) {
    throw Error(EADDRINUSE, fmt::format("Somebody listens on '{}' already", address.path));
  }
  ::unlink(address.path.c_str());
}

FileDescriptor bind_and_listen(FileDescriptor fd, const sockaddr* address, socklen_t length,
                               const std::string& text) {
  if (::bind(fd.get(), address, length) != 0 || ::listen(fd.get(), backlog) != 0) {
    throw Error::system_error(errno, fmt::format("Failed to listen on {}", text));
  }
  prepare_socket(fd.get());
  return fd;
}

}  // namespace

SocketAddress SocketAddress::local(std::string path) {
  SocketAddress address;
  address.kind = Kind::local;
  address.path = std::move(path);
  return address;
}

SocketAddress SocketAddress::inet(std::string host, std::string port) {
  SocketAddress address;
  address.host = std::move(host);
  address.port = std::move(port);
  return address;
}

std::string SocketAddress::text() const {
  if (kind == Kind::local) return "unix:" + path;
  return host.find(':') == std::string::npos ? host + ":" + port : "[" + host + "]:" + port;
}

std::vector<FileDescriptor> listen_on(const SocketAddress& address) {
  std::vector<FileDescriptor> sockets;
  if (address.kind == SocketAddress::Kind::local) {
    const LocalAddress local = local_address(address);
    if (!address.abstract_name) remove_stale(address, local);
    sockets.push_back(
        bind_and_listen(new_socket(AF_UNIX), local.get(), local.length, address.text()));
    return sockets;
  }
  const AddressList list = resolve(address, AI_PASSIVE);
  for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
    FileDescriptor fd = new_socket(info->ai_family);
    set_flag(fd.get(), SOL_SOCKET, SO_REUSEADDR);
    if (info->ai_family == AF_INET6) set_flag(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY);
    sockets.push_back(
        bind_and_listen(std::move(fd), info->ai_addr, info->ai_addrlen, address.text()));
    if (address.port == "0") break;  // each would get another port
  }
  return sockets;
}

FileDescriptor connect_to(const SocketAddress& address) {
  int failure = EADDRNOTAVAIL;
  const auto attempt = [&](int family, const sockaddr* to, socklen_t length) {
    FileDescriptor fd = new_socket(family);
    set_send_limit(fd.get(), 20);  // of connecting, too
    if (::connect(fd.get(), to, length) != 0) {
      failure = errno == EINPROGRESS || errno == EAGAIN ? ETIMEDOUT : errno;
      return FileDescriptor();
    }
    set_send_limit(fd.get(), 0);
    if (is_inet(fd.get())) set_flag(fd.get(), IPPROTO_TCP, TCP_NODELAY);
    return fd;
  };
  if (address.kind == SocketAddress::Kind::local) {
    const LocalAddress local = local_address(address);
    FileDescriptor fd = attempt(AF_UNIX, local.get(), local.length);
    if (fd.valid()) return fd;
  } else {
    const AddressList list = resolve(address, 0);
    for (const addrinfo* info = list.get(); info != nullptr; info = info->ai_next) {
      FileDescriptor fd = attempt(info->ai_family, info->ai_addr, info->ai_addrlen);
      if (fd.valid()) return fd;
    }
  }
  throw Error::system_error(failure, fmt::format("Failed to connect to '{}'", address.text()));
}

std::optional<FileDescriptor> accept_from(int listener) {
  const int fd = ::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0) {
    FileDescriptor connection(fd);
    if (is_inet(fd)) {
      set_flag(fd, IPPROTO_TCP, TCP_NODELAY);
      set_flag(fd, SOL_SOCKET, SO_KEEPALIVE);
    }
    return connection;
  }
  if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
    throw Error::system_error(errno, "Failed to accept a connection");
  }
  return std::nullopt;  // none waits, or it went before we came
}

void prepare_socket(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0 || !S_ISSOCK(status.st_mode)) {
    throw Error(ENOTSOCK, fmt::format("File descriptor {} is no socket", fd));
  }
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
}

std::uint16_t local_port(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  if (address.ss_family == AF_INET)
    return ntohs(reinterpret_cast<sockaddr_in*>(&address)->sin_port);
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<sockaddr_in6*>(&address)->sin6_port);
  }
  return 0;
}

}  // namespace vise
