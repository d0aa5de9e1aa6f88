// nbd-server-start and its relatives, and the exports of type nbd.
#include "export/nbd_service.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <utility>

#include "export/nbd/server.h"
#include "monitor/commands.h"
#include "util/socket.h"
#include "util/tls_credentials.h"
#include "vise/context.h"
#include "vise/objects.h"

namespace vise {

namespace {

class NbdExport final : public Export {
 public:
  NbdExport(std::shared_ptr<nbd::Server> server, std::shared_ptr<nbd::Export> target)
      : server_(std::move(server)), target_(std::move(target)) {}

  Node& node() const override { return target_->root().node(); }
  bool has_clients() const override { return target_->users > 0; }
  Task<void> stop() override {
    co_await server_->remove(target_->name(), nbd::Server::Removal::hard);
  }

 private:
  std::shared_ptr<nbd::Server> server_;
  std::shared_ptr<nbd::Export> target_;
};

nbd::ExportOptions export_options(const qapi::BlockExportOptions& given) {
  const auto& own = std::get<qapi::BlockExportOptionsNbd>(given.branch);
  nbd::ExportOptions options;
  options.name = own.name.value_or(given.node_name);
  options.description = own.description.value_or("");
  options.writable = given.writable.value_or(false);
  options.writethrough = given.writethrough.value_or(false);
  options.allocation_depth = own.allocation_depth.value_or(false);
  if (!own.bitmaps) return options;
  for (const qapi::BlockDirtyBitmapOrStr& bitmap : *own.bitmaps) {
    nbd::ExportOptions::Bitmap wanted;
    if (const auto* external = std::get_if<qapi::BlockDirtyBitmap>(&bitmap.value)) {
      wanted.node = external->node;
      wanted.name = external->name;
    } else {
      wanted.name = std::get<std::string>(bitmap.value);
    }
    options.bitmaps.push_back(std::move(wanted));
  }
  return options;
}

Task<std::unique_ptr<Export>> make(Services& services, qapi::BlockExportOptions given) {
  const std::shared_ptr<nbd::Server> server = services.nbd_server();
  if (server == nullptr) throw Error(EINVAL, "NBD server not running");
  std::shared_ptr<Node> node = get_node(services, given.node_name).shared_from_this();
  nbd::ExportOptions options = export_options(given);
  std::shared_ptr<nbd::Export> target = co_await server->add(std::move(options), std::move(node));
  co_return std::make_unique<NbdExport>(server, std::move(target));
}

FileDescriptor inherited_listener(const std::string& text) {
  int fd = -1;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), fd);
  if (problem != std::errc() || end != text.data() + text.size() || fd < 0) {
    throw Error(EINVAL, fmt::format("'{}' is not the number of a file descriptor", text));
  }
  prepare_socket(fd);
  return FileDescriptor(fd);
}

std::vector<FileDescriptor> listeners(const qapi::ListenAddress& given) {
  if (const auto* fd = std::get_if<qapi::FdSocketAddress>(&given.branch)) {
    std::vector<FileDescriptor> sockets;
    sockets.push_back(inherited_listener(fd->str));
    return sockets;
  }
  if (const auto* inet = std::get_if<qapi::InetSocketAddress>(&given.branch)) {
    SocketAddress address = SocketAddress::inet(inet->host, inet->port);
    address.ipv4 = inet->ipv4;
    address.ipv6 = inet->ipv6;
    return listen_on(address);
  }
  const auto& local = std::get<qapi::UnixSocketAddress>(given.branch);
  SocketAddress address = SocketAddress::local(local.path);
  address.abstract_name = local.abstract.value_or(false);
  return listen_on(address);
}

nbd::ServerOptions server_options(Services& services, const qapi::NbdServerOptions& given) {
  const ObjectTable& objects = services.context().objects();
  nbd::ServerOptions options;
  options.max_clients = given.max_connections.value_or(100);
  options.handshake_limit = std::chrono::seconds(given.handshake_max_seconds.value_or(10));
  if (given.tls_creds) {
    options.tls = find_tls_credentials(objects, *given.tls_creds, TlsCredentials::Endpoint::server);
  }
  if (given.tls_authz) {
    if (!given.tls_creds) throw Error(EINVAL, "'tls-authz' needs 'tls-creds'");
    options.authorization = find_authorization(objects, *given.tls_authz);
  }
  options.on_failure = [&services](const std::string& text) { services.graph().on_warning(text); };
  return options;
}

qapi::ListenAddress modern(qapi::SocketAddressLegacy given) {
  qapi::ListenAddress address;
  address.type = given.type;
  if (auto* inet = std::get_if<qapi::InetSocketAddressWrapper>(&given.branch)) {
    address.branch = std::move(inet->data);
  } else if (auto* local = std::get_if<qapi::UnixSocketAddressWrapper>(&given.branch)) {
    address.branch = std::move(local->data);
  } else if (auto* fd = std::get_if<qapi::FdSocketAddressWrapper>(&given.branch)) {
    address.branch = std::move(fd->data);
  }
  return address;
}

Task<void> nbd_server_start(Services& services, qapi::NbdServerStartArguments arguments) {
  qapi::NbdServerOptions options;
  options.addr = modern(std::move(arguments.addr));
  options.tls_creds = std::move(arguments.tls_creds);
  options.tls_authz = std::move(arguments.tls_authz);
  options.max_connections = arguments.max_connections;
  options.handshake_max_seconds = arguments.handshake_max_seconds;
  co_await start_nbd_server(services, std::move(options));
}

Task<void> nbd_server_stop(Services& services) {
  if (services.nbd_server() == nullptr) throw Error(EINVAL, "NBD server not running");
  co_await stop_nbd_server(services);
}

Task<void> nbd_server_add(Services& services, qapi::NbdServerAddArguments arguments) {
  qapi::BlockExportOptionsNbd own;
  own.name = arguments.name.value_or(arguments.device);
  own.description = arguments.description;
  if (arguments.bitmap) {
    qapi::BlockDirtyBitmapOrStr bitmap;
    bitmap.value = *arguments.bitmap;
    own.bitmaps.emplace();
    own.bitmaps->push_back(std::move(bitmap));
  }
  qapi::BlockExportOptions options;
  options.type = qapi::BlockExportType::nbd;
  options.id = *own.name;
  options.node_name = arguments.device;
  options.writable = arguments.writable;
  options.branch = std::move(own);
  co_await services.exports().add(services, std::move(options));
}

}  // namespace

const ExportType nbd_export_type = {.type = qapi::BlockExportType::nbd, .make = make};

Task<void> start_nbd_server(Services& services, qapi::NbdServerOptions options) {
  if (services.nbd_server() != nullptr) throw Error(EBUSY, "NBD server already running");
  auto server = std::make_shared<nbd::Server>(services.graph(), server_options(services, options));
  std::vector<FileDescriptor> sockets = listeners(options.addr);
  for (FileDescriptor& socket : sockets) server->listen(std::move(socket));
  services.nbd_server() = std::move(server);
  co_return;
}

Task<void> stop_nbd_server(Services& services) {
  const std::shared_ptr<nbd::Server> server = std::exchange(services.nbd_server(), nullptr);
  if (server == nullptr) co_return;
  std::exception_ptr failure;
  try {
    co_await services.exports().stop_all(services, qapi::BlockExportType::nbd);
  } catch (...) {
    failure = std::current_exception();
  }
  co_await server->close();
  if (failure) std::rethrow_exception(failure);
}

void add_nbd_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add<command::nbd_server_start, nbd_server_start>();
  commands.add<command::nbd_server_stop, nbd_server_stop>();
  commands.add<command::nbd_server_add, nbd_server_add>();
}

}  // namespace vise
