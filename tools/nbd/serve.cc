#include "tools/nbd/serve.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "export/nbd/server.h"
#include "tools/common/objects.h"
#include "tools/common/snapshots.h"
#include "tools/nbd/background.h"
#include "util/fd_watch.h"
#include "util/tls_credentials.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

// Removes the socket file at the end.
class SocketFile {
 public:
  SocketFile() = default;
  SocketFile(const SocketFile&) = delete;
  ~SocketFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  void owns(std::string path) { path_ = std::move(path); }

 private:
  std::string path_;
};

class ImageServer {
 public:
  ImageServer(const Program& program, const NbdArguments& arguments, FileDescriptor signals,
              Background background)
      : program_(program),
        arguments_(arguments),
        signals_(std::move(signals)),
        background_(std::move(background)),
        session_(program) {}

  int run() {
    if (!add_objects(arguments_.words, session_.context().objects())) return 0;
    return session_.run(serve());
  }

 private:
  Task<int> serve();
  Task<void> start(nbd::Server& server);
  Task<std::shared_ptr<Node>> open_image();
  Task<std::shared_ptr<Node>> add_layer(std::shared_ptr<Node> below, Value::Dict options);
  Task<void> add_export(nbd::Server& server, std::shared_ptr<Node> node);
  void listen(nbd::Server& server);
  Task<void> wait_for_signal(FdWatch& watch);
  nbd::ServerOptions server_options();

  const Program& program_;
  const NbdArguments& arguments_;
  FileDescriptor signals_;
  Background background_;
  SocketFile socket_file_;
  ImageSession session_;
  AsyncEvent stop_;
  nbd::Server* server_ = nullptr;  // while serve() runs
};

nbd::ServerOptions ImageServer::server_options() {
  nbd::ServerOptions options;
  options.max_clients = arguments_.shared;
  options.handshake_limit = std::chrono::seconds(arguments_.handshake_limit);
  ObjectTable& objects = session_.context().objects();
  if (!arguments_.tls_creds.empty()) {
    options.tls =
        find_tls_credentials(objects, arguments_.tls_creds, TlsCredentials::Endpoint::server);
  }
  if (!arguments_.tls_authz.empty()) {
    options.authorization = find_authorization(objects, arguments_.tls_authz);
  }
  options.on_failure = [this](const std::string& text) { print_error(program_, text); };
  options.on_client_left = [this] {
    if (!arguments_.persistent && server_->clients() == 0) stop_.set();
  };
  return options;
}

Task<int> ImageServer::serve() {
  nbd::Server server(session_.graph(), server_options());
  server_ = &server;
  FdWatch signals(signals_.get(), FdWatch::Until::readable);
  TaskScope watching;
  watching.spawn(wait_for_signal(signals));
  std::exception_ptr failure;
  try {
    co_await start(server);
    co_await stop_.wait();
  } catch (...) {
    failure = std::current_exception();
  }
  signals.cancel();
  co_await watching.join();
  co_await server.close();
  if (failure) std::rethrow_exception(failure);
  co_return 0;
}

Task<void> ImageServer::start(nbd::Server& server) {
  std::shared_ptr<Node> node = co_await open_image();
  co_await add_export(server, std::move(node));
  listen(server);
  if (!arguments_.pid_file.empty()) write_pid_file(arguments_.pid_file);
  background_.ready(arguments_.verbose ? Background::Stderr::keep : Background::Stderr::close);
}

Task<void> ImageServer::wait_for_signal(FdWatch& watch) {
  co_await watch.wait();
  stop_.set();
}

Task<std::shared_ptr<Node>> ImageServer::open_image() {
  const ImageArguments& image = arguments_.image;
  Child* root =
      co_await session_.open(image).context(fmt::format("Failed to open '{}'", image.filename));
  if (arguments_.snapshot) {
    co_await view_snapshot(*root, snapshot_selector(*arguments_.snapshot))
        .context(fmt::format("Failed to load snapshot '{}'", *arguments_.snapshot));
  }
  // From here on it only keeps the node open: whoever is above says what is needed of it.
  co_await root->set_permissions(Permissions{{}, Permissions::all()});
  std::shared_ptr<Node> node = root->shared_node();
  if (arguments_.compress) {
    Value::Dict options;
    options.set("driver", "compress");
    node = co_await add_layer(std::move(node), std::move(options));
  }
  if (arguments_.offset == 0) co_return node;
  if (arguments_.offset > node->size()) {
    throw Error(EINVAL, fmt::format("Offset {} is beyond the end of the image, which has {} bytes",
                                    arguments_.offset, node->size()));
  }
  Value::Dict options;
  options.set("driver", "raw");
  options.set("offset", arguments_.offset);
  co_return co_await add_layer(std::move(node), std::move(options));
}

Task<std::shared_ptr<Node>> ImageServer::add_layer(std::shared_ptr<Node> below,
                                                   Value::Dict options) {
  OpenRequest request;
  request.options = std::move(options);
  request.options.set("file", below->name());
  request.defaults.read_only = below->read_only();
  request.defaults.discard_unmap = true;  // the image has its own say
  Child* root = co_await session_.open(std::move(request));
  co_await root->set_permissions(Permissions{{}, Permissions::all()});
  co_return root->shared_node();
}

Task<void> ImageServer::add_export(nbd::Server& server, std::shared_ptr<Node> node) {
  nbd::ExportOptions options;
  options.name = arguments_.export_name;
  options.description = arguments_.description;
  options.writable = !arguments_.image.read_only;
  options.writethrough = arguments_.writethrough;
  options.allocation_depth = arguments_.allocation_depth;
  for (const std::string& name : arguments_.bitmaps) {
    nbd::ExportOptions::Bitmap bitmap;
    bitmap.name = name;
    options.bitmaps.push_back(std::move(bitmap));
  }
  co_await server.add(std::move(options), std::move(node));
}

void ImageServer::listen(nbd::Server& server) {
  if (!arguments_.address) {
    prepare_socket(first_inherited_socket);
    server.listen(FileDescriptor(first_inherited_socket));
    return;
  }
  std::vector<FileDescriptor> sockets = listen_on(*arguments_.address);
  socket_file_.owns(arguments_.address->path);
  for (FileDescriptor& socket : sockets) server.listen(std::move(socket));
}

}  // namespace

int serve_image(const Program& program, const NbdArguments& arguments) {
  Background background;
  if (arguments.fork) background.start();
  FileDescriptor signals = catch_termination();
  ImageServer server(program, arguments, std::move(signals), std::move(background));
  return server.run();
}

}  // namespace vise::tools
