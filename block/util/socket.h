// Stream sockets by address: listening and connecting, as command lines and QMP describe them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "util/file_descriptor.h"

namespace vise {

/// Where a socket is. (The QMP type is SocketAddress.)
struct SocketAddress {
  enum class Kind { inet, local };
  Kind kind = Kind::inet;
  std::string host;          // inet; empty: all addresses when listening, else localhost
  std::string port;          // inet: a number or service name; "0": any free one when listening
  std::optional<bool> ipv4;  // inet: whether to use this family; nothing: as the host name says
  std::optional<bool> ipv6;
  std::string path;            // local, at most 107 bytes
  bool abstract_name = false;  // local: `path` names no file

  static SocketAddress local(std::string path);
  static SocketAddress inet(std::string host, std::string port);
  /// "unix:PATH" or "HOST:PORT", for messages.
  std::string text() const;
};

/// Sockets that listen there, nonblocking and close-on-exec: for inet one for each address the host
/// name has. A socket file nobody listens on is replaced; Error(EADDRINUSE) if somebody does.
std::vector<FileDescriptor> listen_on(const SocketAddress& address);

/// A connected socket, blocking; of several addresses the first that answers within 20 seconds.
FileDescriptor connect_to(const SocketAddress& address);

/// The next connection of a listening socket, nonblocking, close-on-exec and, with TCP, without
/// delay and with keep-alives. Nothing if there is none now; Error(EMFILE / ENFILE / ENOMEM) if it
/// cannot be taken.
std::optional<FileDescriptor> accept_from(int listener);

/// Makes an inherited or connected socket nonblocking and close-on-exec. Throws Error(ENOTSOCK).
void prepare_socket(int fd);

/// The port an inet socket is bound to; 0 for others.
std::uint16_t local_port(int fd);

}  // namespace vise
