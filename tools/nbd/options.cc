#include "tools/nbd/options.h"

#include <fmt/format.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "export/nbd/protocol.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

// Those without a letter; vise-nbd's own.
enum : int {
  cache_key = 512,
  aio_key,
  discard_key,
  detect_zeroes_key,
  fork_key,
  pid_file_key,
  handshake_limit_key,
  selinux_key,
  tls_creds_key,
  tls_authz_key,
  tls_hostname_key,
};

constexpr OptionSpec options[] = {
    {'p', "port", "PORT", "the TCP port to listen on (10809)"},
    {'b', "bind", "ADDRESS", "the address to listen on (0.0.0.0), or to ask with -L"},
    {'k', "socket", "PATH", "a Unix socket to listen on, or to ask with -L"},
    {'e', "shared", "NUM", "clients served at the same time (1); 0: any number"},
    {'t', "persistent", nullptr, "stay when the last client has left"},
    {'v', "verbose", nullptr, "keep stderr open with --fork"},
    {'x', "export-name", "NAME", "the name of the export (empty)"},
    {'D', "description", "TEXT", "what people are told about the export"},
    {handshake_limit_key, "handshake-limit", "SECONDS",
     "time for a client to choose an export (10); 0: no limit"},
    {'o', "offset", "OFFSET", "export from that byte of the image on"},
    {'A', "allocation-depth", nullptr, "tell which image of the chain data is in"},
    {'B', "bitmap", "NAME", "offer a dirty bitmap; repeatable"},
    {'C', "compress", nullptr, "store what is written compressed"},
    {'L', "list", nullptr, "list what another NBD server exports"},
    {key::object, "object", "OBJECT", "an object that others refer to: TYPE,id=ID,…, or help"},
    {tls_creds_key, "tls-creds", "ID", "use TLS with the credentials of that object"},
    {tls_authz_key, "tls-authz", "ID", "let in only whom that object (authz-simple) names"},
    {tls_hostname_key, "tls-hostname", "NAME", "refused: the name of the host is compared"},
    {fork_key, "fork", nullptr, "end when the server listens, and leave it running"},
    {pid_file_key, "pid-file", "PATH", "write the process number there"},
    {selinux_key, "selinux-label", "LABEL", "refused: built without SELinux"},
    {'c', "connect", "DEV", "refused: attach kernel devices with nbd-client"},
    {'d', "disconnect", nullptr, "refused: detach kernel devices with nbd-client"},
    {'f', "format", "FORMAT", "the image's format; else it is found out"},
    {'r', "read-only", nullptr, "export read-only"},
    {'s', "snapshot", nullptr, "writes go to a temporary overlay"},
    {'l', "load-snapshot", "SNAPSHOT",
     "export an internal snapshot: ID, name, or snapshot.id=ID,snapshot.name=NAME"},
    {'n', "nocache", nullptr, "past the host's page cache, like --cache=none"},
    {cache_key, "cache", "MODE", "writeback, none, writethrough, directsync or unsafe"},
    {aio_key, "aio", "AIO", "threads, native or io_uring"},
    {discard_key, "discard", "MODE", "what discard does: ignore (off) or unmap (on)"},
    {detect_zeroes_key, "detect-zeroes", "MODE", "find zeros in what is written: off, on or unmap"},
    {key::image_opts, "image-opts", nullptr, "FILE is an option string, key=value,…"},
    {'T', "trace", "TRACE", "accepted and ignored"},
    {'h', "help", nullptr, "this help"},
    {'V', "version", nullptr, "the version"},
};

// "0x10", "16"; no suffix. Throws Error(EINVAL).
std::uint64_t plain_count(std::string_view name, const std::string& text, std::uint64_t most) {
  char* end = nullptr;
  errno = 0;
  const bool digit = !text.empty() && text[0] >= '0' && text[0] <= '9';
  const unsigned long long value = digit ? std::strtoull(text.c_str(), &end, 0) : 0;
  if (!digit || *end != '\0' || errno != 0 || value > most) {
    throw Error(EINVAL, fmt::format("Invalid value '{}' of {}: must be a number from 0 to {}", text,
                                    name, most));
  }
  return value;
}

bool discard_mode(const std::string& text) {
  if (text == "ignore" || text == "off") return false;
  if (text == "unmap" || text == "on") return true;
  throw Error(EINVAL,
              fmt::format("Invalid discard mode '{}': must be ignore, off, unmap or on", text));
}

void set_cache(NbdArguments& result, std::string_view mode) {
  result.image.cache = parse_cache_mode(mode);
  result.writethrough = result.image.cache.writethrough;
}

void set_detect_zeroes(NbdArguments& result, const std::string& mode) {
  if (mode != "off" && mode != "on" && mode != "unmap") {
    throw Error(EINVAL,
                fmt::format("Invalid detect-zeroes mode '{}': must be off, on or unmap", mode));
  }
  if (mode == "unmap" && !result.image.discard_unmap) {
    throw Error(EINVAL, "--detect-zeroes=unmap needs --discard=unmap in front of it");
  }
  result.image.options.set("detect-zeroes", mode);
}

void check_text(std::string_view name, const std::string& text) {
  if (text.size() <= nbd::max_string) return;
  throw Error(EINVAL, fmt::format("{} has {} bytes, allowed are 0 to {}", name, text.size(),
                                  nbd::max_string));
}

// How the image is opened. False: another option.
bool apply_image_option(const Arguments::Option& option, NbdArguments& result) {
  switch (option.key) {
    case 'f':
      result.image.format = option.value;
      return true;
    case key::image_opts:
      result.image.image_opts = true;
      return true;
    case 'r':
      result.image.read_only = true;
      return true;
    case 's':
      result.image.temporary_overlay = true;
      return true;
    case 'l':
      result.snapshot = option.value;
      result.image.read_only = true;
      return true;
    case 'n':
      set_cache(result, "none");
      return true;
    case cache_key:
      set_cache(result, option.value);
      return true;
    case aio_key:
      result.image.aio = option.value;
      return true;
    case discard_key:
      result.image.discard_unmap = discard_mode(option.value);
      return true;
    case detect_zeroes_key:
      set_detect_zeroes(result, option.value);
      return true;
    case 'o':
      result.offset = plain_count("--offset", option.value, INT64_MAX);
      return true;
    case 'C':
      result.compress = true;
      return true;
    default:
      return false;
  }
}

void apply_server_option(const Arguments::Option& option, NbdArguments& result) {
  switch (option.key) {
    case 'L':
      result.mode = NbdMode::list;
      break;
    case 'x':
      check_text("--export-name", result.export_name = option.value);
      break;
    case 'D':
      check_text("--description", result.description = option.value);
      break;
    case 'A':
      result.allocation_depth = true;
      break;
    case 'B':
      result.bitmaps.push_back(option.value);
      break;
    case 'e':
      result.shared = static_cast<unsigned>(plain_count("--shared", option.value, INT_MAX));
      break;
    case 't':
      result.persistent = true;
      break;
    case 'v':
      result.verbose = true;
      break;
    case handshake_limit_key:
      result.handshake_limit =
          static_cast<unsigned>(plain_count("--handshake-limit", option.value, 1'000'000));
      break;
    case tls_creds_key:
      result.tls_creds = option.value;
      break;
    case tls_authz_key:
      result.tls_authz = option.value;
      break;
    case fork_key:
      result.fork = true;
      break;
    case pid_file_key:
      result.pid_file = option.value;
      break;
    default:
      break;
  }
}

void refuse_unsupported(const Arguments& words) {
  if (words.has('c') || words.has('d')) {
    throw Error(ENOTSUP,
                "Kernel devices are not attached here: serve a socket and use nbd-client for -c "
                "(--connect) and -d (--disconnect)");
  }
  if (words.has(tls_hostname_key)) {
    throw Error(ENOTSUP,
                "--tls-hostname: the server's certificate is always compared with the name of the "
                "host (-b)");
  }
  if (words.has(selinux_key)) {
    throw Error(ENOTSUP, "--selinux-label: vise-nbd is built without SELinux");
  }
}

void check_list(const Arguments& words) {
  if (!words.operands.empty()) throw UsageError("-L (--list) takes no FILE");
  constexpr int serving[] = {'f', 'o', 'l',       'x',     'D',         'A',     'B',
                             'C', 'n', cache_key, aio_key, discard_key, fork_key};
  for (const int option : serving) {
    if (words.has(option))
      throw UsageError("-L (--list) excludes the options for serving an image");
  }
}

void check_once(const Arguments& words) {
  const auto count = [&](std::initializer_list<int> keys) {
    int found = 0;
    for (const auto& option : words.options) {
      for (const int key : keys) found += option.key == key ? 1 : 0;
    }
    return found;
  };
  if (count({'n', cache_key}) > 1) throw UsageError("-n and --cache can only be given once");
  if (count({aio_key}) > 1) throw UsageError("--aio can only be given once");
  if (count({discard_key}) > 1) throw UsageError("--discard can only be given once");
}

SocketAddress socket_address(const Arguments& words, NbdMode mode) {
  if (const std::string* path = words.last('k')) {
    if (!path->starts_with('/') && mode == NbdMode::serve) {
      throw Error(EINVAL, fmt::format("The path of the socket must be absolute, not '{}'", *path));
    }
    return SocketAddress::local(*path);
  }
  return SocketAddress::inet(words.value_or('b', "0.0.0.0"), words.value_or('p', "10809"));
}

}  // namespace

std::string nbd_help(const Program& program) {
  return fmt::format(
      "Usage: {0} [OPTION]... FILE\n       {0} -L [OPTION]...\nServes a disk image over NBD, or "
      "lists what an NBD server has.\n\n{1}",
      program.name, describe_options(options));
}

std::span<const OptionSpec> nbd_options() { return options; }

NbdArguments nbd_arguments(Arguments words, bool inherited_socket) {
  NbdArguments result;
  result.image.read_only = false;
  refuse_unsupported(words);
  check_once(words);
  for (const Arguments::Option& option : words.options) {
    if (!apply_image_option(option, result)) apply_server_option(option, result);
  }
  if (result.mode == NbdMode::list) check_list(words);
  if (result.mode == NbdMode::serve) {
    if (words.operands.size() != 1) throw UsageError("Give the name of one image");
    result.image.filename = words.operands[0];
  }
  if (result.compress && result.image.read_only) {
    throw UsageError("-C (--compress) is about writing: it excludes -r and -l");
  }
  if (!result.tls_authz.empty() && result.tls_creds.empty()) {
    throw UsageError("--tls-authz needs --tls-creds");
  }
  if (!inherited_socket) {
    result.address = socket_address(words, result.mode);
  } else if (words.has('p') || words.has('b') || words.has('k') || result.mode == NbdMode::list) {
    throw UsageError("systemd has passed a socket: -p, -b, -k and -L are excluded");
  }
  result.words = std::move(words);
  return result;
}

}  // namespace vise::tools
