#include "graph/nbd_names.h"

#include <fmt/format.h>

#include <cerrno>
#include <optional>

#include "vise/error.h"

namespace vise {

namespace {

constexpr std::string_view default_port = "10809";
constexpr std::string_view export_mark = ":exportname=";

[[noreturn]] void refuse(std::string_view name, std::string_view why) {
  throw Error(EINVAL, fmt::format("'{}' names no NBD export: {}", name, why));
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string percent_decoded(std::string_view name, std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result += text[i];
      continue;
    }
    const int high = i + 2 < text.size() ? hex_digit(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? hex_digit(text[i + 2]) : -1;
    if (high < 0 || low < 0) refuse(name, "% must be followed by two hexadecimal digits");
    if (high == 0 && low == 0) refuse(name, "%00 stands for nothing");
    result += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return result;
}

Value::Dict options_of(Value::Dict server, std::string export_name) {
  Value::Dict options;
  options.set("driver", "nbd");
  options.set("server", std::move(server));
  if (!export_name.empty()) options.set("export", std::move(export_name));
  return options;
}

Value::Dict local_server(std::string path) {
  Value::Dict server;
  server.set("type", "unix");
  server.set("path", std::move(path));
  return server;
}

Value::Dict inet_server(std::string host, std::string port) {
  Value::Dict server;
  server.set("type", "inet");
  server.set("host", std::move(host));
  server.set("port", std::move(port));
  return server;
}

// "HOST", "HOST:PORT", "[HOST]:PORT".
Value::Dict authority_server(std::string_view name, std::string_view text) {
  std::string_view host = text;
  std::string_view rest;
  if (text.starts_with('[')) {
    const auto end = text.find(']');
    if (end == std::string_view::npos) refuse(name, "']' is missing");
    host = text.substr(1, end - 1);
    rest = text.substr(end + 1);
  } else if (const auto colon = text.find(':'); colon != std::string_view::npos) {
    host = text.substr(0, colon);
    rest = text.substr(colon);
  }
  if (!rest.empty() && !rest.starts_with(':')) refuse(name, "the port is malformed");
  if (host.empty()) refuse(name, "the host is missing");
  const std::string_view port = rest.size() > 1 ? rest.substr(1) : default_port;
  return inet_server(percent_decoded(name, host), std::string(port));
}

Value::Dict options_of_uri(std::string_view name, bool local) {
  std::string_view rest = name.substr(name.find("://") + 3);
  std::optional<std::string> socket;
  if (const auto mark = rest.find('?'); mark != std::string_view::npos) {
    const std::string_view query = rest.substr(mark + 1);
    if (!query.starts_with("socket=") || query.find('&') != std::string_view::npos) {
      refuse(name, "behind '?' only socket=PATH is known");
    }
    socket = percent_decoded(name, query.substr(7));
    rest = rest.substr(0, mark);
  }
  const auto slash = rest.find('/');
  const std::string_view authority = rest.substr(0, slash);
  std::string export_name;
  if (slash != std::string_view::npos) {
    export_name = percent_decoded(name, rest.substr(slash + 1));
  }
  if (!local) {
    if (socket) refuse(name, "socket= belongs to nbd+unix");
    return options_of(authority_server(name, authority), std::move(export_name));
  }
  if (!socket || socket->empty()) refuse(name, "?socket=PATH is missing");
  if (!authority.empty()) refuse(name, "nbd+unix has no host");
  return options_of(local_server(std::move(*socket)), std::move(export_name));
}

// "nbd:HOST:PORT", "nbd:unix:PATH".
Value::Dict options_of_old_name(std::string_view name) {
  std::string_view rest = name.substr(4);
  std::string export_name;
  if (const auto mark = rest.find(export_mark); mark != std::string_view::npos) {
    export_name = rest.substr(mark + export_mark.size());
    if (export_name.empty()) refuse(name, "exportname= is empty");
    rest = rest.substr(0, mark);
  }
  if (rest.starts_with("unix:")) {
    if (rest.size() == 5) refuse(name, "the path is missing");
    return options_of(local_server(std::string(rest.substr(5))), std::move(export_name));
  }
  if (rest.find(':') == std::string_view::npos) refuse(name, "the port is missing");
  return options_of(authority_server(name, rest), std::move(export_name));
}

std::optional<std::string> take_text(Value::Dict& options, std::string_view key) {
  const Value* value = options.find(key);
  if (value == nullptr || !value->is_string()) return std::nullopt;
  std::string text = value->as_string();
  options.erase(key);
  return text;
}

// `server` is {"type": …, …}; empty if it has no such form.
std::string uri_of(Value::Dict server, const std::string& export_name) {
  const auto type = take_text(server, "type");
  const auto path = take_text(server, "path");
  const auto host = take_text(server, "host");
  const auto port = take_text(server, "port");
  if (!server.empty() || !type) return {};
  const std::string slash = export_name.empty() ? "" : "/" + export_name;
  if (*type == "unix" && path && !host && !port) {
    return fmt::format("nbd+unix://{}?socket={}", slash, *path);
  }
  if (*type != "inet" || path || !host || !port) return {};
  const bool bare = host->find(':') == std::string::npos;
  return fmt::format("nbd://{}{}{}:{}{}", bare ? "" : "[", *host, bare ? "" : "]", *port, slash);
}

}  // namespace

Value::Dict nbd_options_of_name(std::string_view name) {
  if (name.starts_with("nbd://") || name.starts_with("nbd+tcp://")) {
    return options_of_uri(name, false);
  }
  if (name.starts_with("nbd+unix://")) return options_of_uri(name, true);
  if (name.starts_with("nbd:")) return options_of_old_name(name);
  refuse(name, "known are nbd://, nbd+tcp://, nbd+unix:// and nbd:");
}

std::string nbd_name_of_options(Value::Dict options) {
  const std::string export_name = take_text(options, "export").value_or("");
  const std::optional<Value> server = options.take("server");
  if (server)
    return options.empty() && server->is_dict() ? uri_of(server->as_dict(), export_name) : "";
  const auto path = take_text(options, "path");
  const auto host = take_text(options, "host");
  const auto port = take_text(options, "port");
  if (!options.empty() || path.has_value() == host.has_value()) return {};
  if (path) return port ? "" : uri_of(local_server(*path), export_name);
  return uri_of(inet_server(*host, port.value_or(std::string(default_port))), export_name);
}

}  // namespace vise
