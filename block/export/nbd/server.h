// The NBD server: listens, keeps the exports, and has one connection for each client.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "export/nbd/export.h"
#include "export/nbd/stream.h"
#include "util/fd_watch.h"
#include "util/file_descriptor.h"
#include "vise/graph.h"
#include "vise/sync.h"

namespace vise::nbd {

struct ServerOptions {
  /// Clients must use TLS; null: they cannot.
  std::shared_ptr<TlsCredentials> tls;
  /// Who may come in, by certificate; null: everybody that TLS lets in.
  std::shared_ptr<SimpleAuthorization> authorization;
  /// Clients in transmission at the same time; 0: any number. Others wait unanswered.
  unsigned max_clients = 0;
  /// From the connection to the choice of an export; 0: no limit.
  std::chrono::milliseconds handshake_limit{10'000};
  /// A client that owes us the rest of a message, or does not take our replies, is cut off after
  /// that time without a single byte; 0: never.
  std::chrono::milliseconds stall_limit{300'000};
  /// Called with one line for people when a client was cut off for what it did. May be empty.
  std::function<void(const std::string&)> on_failure;
  /// Called when a client that had chosen an export has left. May be empty.
  std::function<void()> on_client_left;
};

class Server {
 public:
  Server(Graph& graph, ServerOptions options);
  Server(const Server&) = delete;
  ~Server();  // closed (asserted)

  /// Offers `node` from now on. Throws Error(EEXIST) if there is an export of that name, and what
  /// Export::open() throws.
  Task<std::shared_ptr<Export>> add(ExportOptions options, std::shared_ptr<Node> node);
  /// Withdraws an export; the node is let go when it completes. With hard, clients that use it are
  /// cut off. Throws Error(ENOENT) if there is none of that name, and with safe Error(EBUSY) if it
  /// has clients.
  enum class Removal { safe, hard };
  Task<void> remove(std::string name, Removal how);

  /// Null if there is none of that name.
  std::shared_ptr<Export> find(std::string_view name) const;
  /// In order of addition; those about to go are not among them.
  std::vector<std::shared_ptr<Export>> exports() const;

  /// Serves clients of a listening socket, nonblocking, until close().
  void listen(FileDescriptor listener);
  /// Serves one client, connected and nonblocking.
  void serve(FileDescriptor client);
  /// Clients in transmission.
  unsigned clients() const { return clients_; }

  /// Stops listening, cuts clients off, lets go of all exports.
  Task<void> close();

  /// May clients use several connections for one job? Not where only one is served at a time.
  bool multi_conn() const { return options_.max_clients != 1; }

  /// For the handshake.
  const ServerOptions& options() const { return options_; }
  /// For the handshake: waits for a place among the clients in transmission and takes it. False if
  /// the export is about to go, or the client is gone.
  Task<bool> enter(Export& target, Stream& stream);

 private:
  struct Connection;

  Task<void> accept_clients(FileDescriptor listener);
  Task<void> run(Connection& connection);
  Task<bool> converse(Connection& connection);
  void leave(Export& target);
  void start_watching();
  void watch() noexcept;
  bool has_room() const;
  void report(const std::string& text) const;

  Graph& graph_;
  ServerOptions options_;
  std::vector<std::shared_ptr<Export>> exports_;
  std::list<Connection> connections_;
  std::list<FdWatch> listeners_;
  TaskScope tasks_;
  unsigned clients_ = 0;
  unsigned waiting_ = 0;  // handshakes that are done but for a place
  WaitQueue changed_;     // a connection or a client less, an export about to go, the end
  Timer timer_;           // runs while there are connections
  bool closing_ = false;
};

}  // namespace vise::nbd
