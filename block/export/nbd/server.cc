#include "export/nbd/server.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "export/nbd/handshake.h"
#include "export/nbd/input.h"
#include "export/nbd/transmission.h"
#include "util/socket.h"
#include "vise/error.h"

namespace vise::nbd {

namespace {

// Clients that have not chosen an export yet cost a socket and a buffer each. Beyond that, others
// wait in the queue of the kernel until one has chosen, or run out of time.
constexpr std::size_t max_handshakes = 64;
// After the system had no file descriptor left for a client.
constexpr std::chrono::milliseconds accept_pause{100};

}  // namespace

struct Server::Connection {
  explicit Connection(FileDescriptor socket) : stream(std::move(socket)), input(stream) {}
  Stream stream;
  Input input;
  Stream::Clock::time_point begin = Stream::Clock::now();
  std::shared_ptr<Export> target;  // once it is chosen
};

Server::Server(Graph& graph, ServerOptions options) : graph_(graph), options_(std::move(options)) {}

Server::~Server() {
  assert(connections_.empty() && exports_.empty() && listeners_.empty() && "await close() before");
}

void Server::report(const std::string& text) const {
  if (options_.on_failure) options_.on_failure(text);
}

Task<std::shared_ptr<Export>> Server::add(ExportOptions options, std::shared_ptr<Node> node) {
  const std::string name = options.name;
  const auto require_free = [&] {
    const auto same = [&](const auto& target) { return target->name() == name; };
    if (!std::ranges::any_of(exports_, same)) return;
    throw Error(EEXIST, fmt::format("There is an NBD export '{}' already", name));
  };
  require_free();
  std::shared_ptr<Export> target =
      co_await Export::open(graph_, std::move(options), std::move(node));
  std::exception_ptr failure;
  try {
    require_free();  // somebody else may have been faster
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    co_await target->close();
    std::rethrow_exception(failure);
  }
  exports_.push_back(target);
  co_return target;
}

Task<void> Server::remove(std::string name, Removal how) {
  const std::shared_ptr<Export> target = find(name);
  if (target == nullptr) throw Error(ENOENT, fmt::format("There is no NBD export '{}'", name));
  if (how == Removal::safe && target->users > 0) {
    throw Error(EBUSY, fmt::format("NBD export '{}' has clients", name));
  }
  target->closing = true;
  for (Connection& connection : connections_) {
    if (connection.target == target) connection.stream.shut_down();
  }
  changed_.wake_all();
  while (target->users > 0) co_await changed_.wait();
  std::erase(exports_, target);
  co_await target->close();
}

std::shared_ptr<Export> Server::find(std::string_view name) const {
  for (const auto& target : exports_) {
    if (target->name() == name && !target->closing) return target;
  }
  return nullptr;
}

std::vector<std::shared_ptr<Export>> Server::exports() const {
  std::vector<std::shared_ptr<Export>> result = exports_;
  std::erase_if(result, [](const auto& target) { return target->closing; });
  return result;
}

void Server::listen(FileDescriptor listener) {
  assert(!closing_);
  tasks_.spawn(accept_clients(std::move(listener)));
}

bool Server::has_room() const {
  const std::size_t handshakes = connections_.size() - clients_ - waiting_;
  // One that has chosen waits for its place with everything it needs; the next ones wait outside.
  const bool places = options_.max_clients == 0 || clients_ + waiting_ < options_.max_clients;
  return places && handshakes < max_handshakes;
}

Task<void> Server::accept_clients(FileDescriptor listener) {
  const auto watch = listeners_.emplace(listeners_.end(), listener.get(), FdWatch::Until::readable);
  EventLoop& loop = EventLoop::current();
  while (!closing_) {
    if (!has_room()) {
      co_await changed_.wait();
      continue;
    }
    bool exhausted = false;
    std::optional<FileDescriptor> client;
    try {
      client = accept_from(listener.get());
    } catch (const Error& error) {
      report(error.message());
      exhausted = true;
    }
    if (exhausted)
      co_await loop.sleep(accept_pause);
    else if (client)
      serve(std::move(*client));
    else
      co_await watch->wait();
  }
  listeners_.erase(watch);
}

void Server::serve(FileDescriptor client) {
  Connection& connection = connections_.emplace_back(std::move(client));
  start_watching();
  tasks_.spawn(run(connection));
}

Task<void> Server::run(Connection& connection) {
  std::string problem;
  bool entered = false;
  try {
    entered = co_await converse(connection);
  } catch (const Error& error) {
    problem = error.message();
  } catch (const std::bad_alloc&) {
    problem = "Out of memory";
  }
  if (!problem.empty()) report(fmt::format("NBD client: {}", problem));
  if (connection.target != nullptr) leave(*connection.target);
  connections_.remove_if([&](const Connection& other) { return &other == &connection; });
  if (connections_.empty()) timer_.stop();
  changed_.wake_all();
  if (entered && options_.on_client_left) options_.on_client_left();
}

// True if the client had chosen an export.
Task<bool> Server::converse(Connection& connection) {
  Handshake handshake(*this, connection.stream, connection.input);
  std::optional<Session> session = co_await handshake.run();
  if (!session) co_return false;
  Transmission transmission(std::move(*session), connection.stream, connection.input);
  co_await transmission.run();
  connection.stream.say_goodbye();
  co_return true;
}

Task<bool> Server::enter(Export& target, Stream& stream) {
  const auto full = [&] { return options_.max_clients != 0 && clients_ >= options_.max_clients; };
  while (full() && !target.closing && !stream.is_shut_down()) {
    ++waiting_;
    co_await changed_.wait();
    --waiting_;
  }
  if (target.closing || stream.is_shut_down()) co_return false;
  for (Connection& connection : connections_) {
    if (&connection.stream != &stream) continue;
    ++clients_;
    ++target.users;
    const auto held = std::ranges::find_if(
        exports_, [&](const auto& candidate) { return candidate.get() == &target; });
    assert(held != exports_.end());
    connection.target = *held;
  }
  co_return true;
}

void Server::leave(Export& target) {
  --clients_;
  --target.users;
}

void Server::start_watching() {
  if (timer_.running()) return;
  const auto shortest = [](std::chrono::milliseconds a, std::chrono::milliseconds b) {
    return a.count() == 0 ? b : b.count() == 0 ? a : std::min(a, b);
  };
  const auto limit = shortest(options_.handshake_limit, options_.stall_limit);
  if (limit.count() > 0) timer_.start(limit / 8, [this] { watch(); });
}

// Cuts off those whose time is up. Nobody leaves the list here: what they wait for ends, through
// the loop.
void Server::watch() noexcept {
  const auto now = Stream::Clock::now();
  bool cut = false;
  for (Connection& connection : connections_) {
    if (connection.stream.is_shut_down()) continue;
    const auto limit =
        connection.target == nullptr ? options_.handshake_limit : options_.stall_limit;
    if (limit.count() == 0) continue;
    const bool late = connection.target == nullptr ? now - connection.begin >= limit
                                                   : connection.stream.stalled_since(now - limit);
    if (!late) continue;
    report(connection.target == nullptr ? "NBD client: The handshake took too long"
                                        : "NBD client: It has stopped in the middle of a message");
    connection.stream.shut_down();
    cut = true;
  }
  if (cut) changed_.wake_all();
}

Task<void> Server::close() {
  closing_ = true;
  for (FdWatch& listener : listeners_) listener.cancel();
  for (const auto& target : exports_) target->closing = true;
  for (Connection& connection : connections_) connection.stream.shut_down();
  changed_.wake_all();
  co_await tasks_.join();
  std::exception_ptr failure;
  while (!exports_.empty()) {
    const std::shared_ptr<Export> target = exports_.back();
    exports_.pop_back();
    try {
      co_await target->close();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise::nbd
