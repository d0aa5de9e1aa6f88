// The command line of vise-nbd.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/common/arguments.h"
#include "tools/common/open.h"
#include "util/socket.h"

namespace vise::tools {

enum class NbdMode { serve, list };

struct NbdArguments {
  NbdMode mode = NbdMode::serve;
  Arguments words;  // for --object

  ImageArguments image;
  std::optional<std::string> snapshot;  // -l
  std::uint64_t offset = 0;             // bytes
  bool compress = false;
  bool writethrough = false;

  std::string export_name;
  std::string description;
  bool allocation_depth = false;
  std::vector<std::string> bitmaps;
  unsigned shared = 1;  // 0: any number
  bool persistent = false;
  unsigned handshake_limit = 10;  // seconds, 0: none

  std::optional<SocketAddress> address;  // nothing: systemd has passed a socket
  std::string tls_creds;                 // an object's id; empty: no TLS
  std::string tls_authz;                 // an object's id; empty: none
  bool fork = false;
  bool verbose = false;
  std::string pid_file;
};

/// The text of --help.
std::string nbd_help(const Program& program);
std::span<const OptionSpec> nbd_options();

/// Throws UsageError for words that cannot be meant together, Error(EINVAL) for bad values.
/// `inherited_socket`: systemd has passed a socket to serve.
NbdArguments nbd_arguments(Arguments words, bool inherited_socket);

}  // namespace vise::tools
