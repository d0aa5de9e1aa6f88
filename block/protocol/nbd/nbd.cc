#include "protocol/nbd/nbd.h"

#include <fmt/format.h>
#include <libnbd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "util/driver_options.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds first_pause{100};
constexpr milliseconds longest_pause{5'000};
constexpr std::uint64_t longest_range = 1u << 30;  // of zeroes, discards and questions, bytes

}  // namespace

NbdDriver::NbdDriver(Node& node, NbdOptions options, IoEngine& engine)
    : node_(node), options_(std::move(options)), engine_(engine) {}

Task<void> NbdDriver::start() {
  const auto deadline = Clock::now() + options_.open_timeout;
  if (options_.open_timeout.count() > 0) {
    timer_.start(options_.open_timeout, [this] {
      if (interrupt_) interrupt_();
    });
  }
  for (milliseconds wait = first_pause; connection_ == nullptr;
       wait = std::min(wait * 2, longest_pause)) {
    std::exception_ptr failure;
    try {
      std::unique_ptr<nbd::Connection> connection =
          co_await nbd::Connection::open(options_.target, engine_, interrupt_);
      connection_ = std::move(connection);
    } catch (...) {
      failure = std::current_exception();
    }
    if (!failure) break;
    if (Clock::now() + wait > deadline) std::rethrow_exception(failure);
    co_await EventLoop::current().sleep(wait);
  }
  timer_.stop();
  facts_ = connection_->facts();
  tasks_.spawn(keep_connected());
}

Limits NbdDriver::limits() const {
  const std::uint64_t longest =
      std::min<std::uint64_t>(align_down(facts_.maximum, facts_.minimum), 32u << 20);
  const std::uint64_t range = align_down(longest_range, facts_.minimum);
  return {.request_alignment = facts_.minimum,
          .max_transfer = longest,
          .optimal_transfer = facts_.preferred,
          .max_segments = 1,
          .max_zeroes = range,
          .max_discard = range,
          .native_fua = facts_.can_fua,
          .can_zero = facts_.can_zero,
          .can_discard = facts_.can_trim};
}

// Ends when the connection does, and begins anew with the next.
Task<void> NbdDriver::keep_connected() {
  while (!closing_) {
    const std::shared_ptr<nbd::Connection> current = connection_;
    co_await current->run();
    connection_ = nullptr;
    if (closing_) break;
    lost_at_ = Clock::now();
    // Those who wait for a connection look at the clock when this ends.
    if (options_.reconnect_delay.count() > 0) {
      timer_.start(options_.reconnect_delay + milliseconds(1), [this] {
        timer_.stop();
        changed_.wake_all();
      });
    }
    co_await reconnect();
    timer_.stop();
    changed_.wake_all();
    if (fatal_) break;
  }
}

Task<void> NbdDriver::reconnect() {
  for (milliseconds wait = first_pause; !closing_ && !fatal_;
       wait = std::min(wait * 2, longest_pause)) {
    try {
      std::unique_ptr<nbd::Connection> connection =
          co_await nbd::Connection::open(options_.target, engine_, interrupt_);
      try {
        check_same_export(connection->facts());
        connection_ = std::move(connection);
        co_return;
      } catch (const Error& error) {
        fatal_ = error;
      }
    } catch (const Error&) {
      // Nobody there yet.
    }
    if (!fatal_) co_await pause(wait);
  }
}

// Another disk under the same name would be written to as if it were the old one.
void NbdDriver::check_same_export(const nbd::ExportFacts& facts) const {
  if (facts.size != facts_.size) {
    throw Error(EIO, fmt::format("The NBD export has changed its size from {} to {} bytes",
                                 facts_.size, facts.size));
  }
  if (facts.minimum > facts_.minimum || facts.maximum < limits().max_transfer) {
    throw Error(EIO, "The NBD export has changed its block sizes");
  }
  const bool lacks = (facts.read_only && !facts_.read_only) ||
                     (facts_.can_flush && !facts.can_flush) || (facts_.can_fua && !facts.can_fua) ||
                     (facts_.can_zero && !facts.can_zero) || (facts_.can_trim && !facts.can_trim);
  if (lacks) throw Error(EIO, "The NBD export can do less than before the connection broke");
}

Task<void> NbdDriver::pause(milliseconds duration) {
  const auto end = Clock::now() + duration;
  while (!closing_ && Clock::now() < end) co_await EventLoop::current().sleep(first_pause);
}

bool NbdDriver::may_wait() const {
  return !closing_ && !fatal_ && Clock::now() < lost_at_ + options_.reconnect_delay;
}

// Waits for a connection as long as the options allow.
Task<std::shared_ptr<nbd::Connection>> NbdDriver::connection() {
  for (;;) {
    if (fatal_) throw Error(*fatal_);
    const std::shared_ptr<nbd::Connection> current = connection_;
    if (current != nullptr && !current->lost()) co_return current;
    if (current == nullptr && !may_wait()) {
      throw Error(EIO, fmt::format("The connection to NBD server '{}' is lost",
                                   options_.target.address.text()));
    }
    if (current != nullptr)
      co_await EventLoop::current().yield();  // keep_connected() is about to notice
    else
      co_await changed_.wait();
  }
}

// Runs `body`, which gives a task for a connection, until it has not met with a broken one.
template <class Body>
Task<void> NbdDriver::perform(Body body) {
  for (;;) {
    const std::shared_ptr<nbd::Connection> current = co_await connection();
    bool done = false;
    try {
      Task<void> task = body(*current);
      co_await std::move(task);
      done = true;
    } catch (const nbd::ConnectionLost&) {
    }
    if (done) co_return;
    while (connection_ == current) co_await EventLoop::current().yield();
  }
}

Task<void> NbdDriver::read(GuestOffset offset, IoVec data) {
  const std::span<std::byte> bytes = data.contiguous();
  const auto body = [&](nbd::Connection& connection) {
    return connection.read(offset.bytes(), bytes);
  };
  co_await perform(body);
}

Task<void> NbdDriver::write(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  const std::span<const std::byte> bytes = data.contiguous();
  const std::uint32_t how = flags.fua ? LIBNBD_CMD_FLAG_FUA : 0;
  const auto body = [&](nbd::Connection& connection) {
    return connection.write(offset.bytes(), bytes, how);
  };
  co_await perform(body);
}

Task<void> NbdDriver::write_zeroes(GuestRange range, ZeroFlags flags) {
  if (flags.no_fallback && !facts_.can_fast_zero) {
    throw Error(ENOTSUP, "The NBD server does not say whether zeroes are fast");
  }
  std::uint32_t how = flags.fua ? LIBNBD_CMD_FLAG_FUA : 0;
  if (!flags.may_unmap) how |= LIBNBD_CMD_FLAG_NO_HOLE;
  if (flags.no_fallback) how |= LIBNBD_CMD_FLAG_FAST_ZERO;
  const auto body = [&](nbd::Connection& connection) {
    return connection.zero(range.start.bytes(), range.length, how);
  };
  co_await perform(body);
}

Task<void> NbdDriver::discard(GuestRange range) {
  const auto body = [&](nbd::Connection& connection) {
    return connection.trim(range.start.bytes(), range.length);
  };
  co_await perform(body);
}

Task<void> NbdDriver::flush() {
  if (!facts_.can_flush) co_return;
  const auto body = [](nbd::Connection& connection) { return connection.flush(); };
  co_await perform(body);
}

namespace {

Task<void> ask_status(nbd::Connection& connection, GuestRange range, nbd::StatusAnswer& answer) {
  answer = co_await connection.status(range.start.bytes(), range.length);
}

}  // namespace

Task<Extent> NbdDriver::map(GuestRange range, MapMode mode) {
  Extent extent{.kind = Extent::Kind::data,
                .length = range.length,
                .host = HostOffset(range.start.bytes()),
                .node = &node_};
  if (mode == MapMode::allocation_only || !facts_.can_tell_status) co_return extent;
  const std::uint64_t most = std::min(range.length, align_down(longest_range, facts_.minimum));
  const GuestRange asked{range.start, most};
  nbd::StatusAnswer answer;
  const auto body = [&](nbd::Connection& connection) {
    return ask_status(connection, asked, answer);
  };
  co_await perform(body);
  if (answer.length == 0) throw Error(EPROTO, "The NBD server does not answer for base:allocation");
  extent.length = std::min<std::uint64_t>(answer.length, asked.length);
  if ((answer.flags & LIBNBD_STATE_ZERO) != 0) extent.kind = Extent::Kind::zero;
  co_return extent;
}

Task<void> NbdDriver::reopen(bool read_only) {
  if (!read_only && facts_.read_only) throw Error(EACCES, "The NBD export is read-only");
  co_return;
}

Task<void> NbdDriver::close() {
  std::exception_ptr failure;
  if (connection_ != nullptr && !node_.read_only()) {
    try {
      co_await flush();
    } catch (...) {
      failure = std::current_exception();
    }
  }
  closing_ = true;
  if (interrupt_) interrupt_();
  if (connection_ != nullptr) connection_->close();
  changed_.wake_all();
  co_await tasks_.join();
  if (failure) std::rethrow_exception(failure);
}

namespace {

SocketAddress address_of(const qapi::SocketAddress& given) {
  SocketAddress address;
  if (const auto* inet = std::get_if<qapi::InetSocketAddress>(&given.branch)) {
    address = SocketAddress::inet(inet->host, inet->port);
    address.ipv4 = inet->ipv4;
    address.ipv6 = inet->ipv6;
  } else if (const auto* local = std::get_if<qapi::UnixSocketAddress>(&given.branch)) {
    address = SocketAddress::local(local->path);
    address.abstract_name = local->abstract.value_or(false);
  }
  return address;
}

SocketAddress address_of(const qapi::BlockdevOptionsNbd& given) {
  const int ways = (given.server ? 1 : 0) + (given.host ? 1 : 0) + (given.path ? 1 : 0);
  if (ways != 1 || (given.port && !given.host)) {
    throw Error(EINVAL,
                "Driver 'nbd' needs either 'server', or 'host' and perhaps 'port', or 'path'");
  }
  if (given.server) return address_of(*given.server);
  if (given.path) return SocketAddress::local(*given.path);
  return SocketAddress::inet(*given.host, given.port.value_or("10809"));
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const auto given = read_options<qapi::BlockdevOptionsNbd>(context);
  NbdOptions options;
  options.target.address = address_of(given);
  options.target.export_name = given.export_.value_or("");
  if (options.target.export_name.size() > 4096) {
    throw Error(EINVAL, fmt::format("The export's name has {} bytes, allowed are 0 to 4096",
                                    options.target.export_name.size()));
  }
  if (given.tls_creds) {
    options.target.tls = find_tls_credentials(context.context().objects(), *given.tls_creds,
                                              TlsCredentials::Endpoint::client);
  }
  options.reconnect_delay = std::chrono::seconds(given.reconnect_delay.value_or(0));
  options.open_timeout = std::chrono::seconds(given.open_timeout.value_or(0));
  auto driver = std::make_unique<NbdDriver>(context.node(), std::move(options),
                                            context.context().io_threads());
  co_await driver->start();
  const bool conflict = driver->facts().read_only && !context.node_options().read_only;
  if (conflict && context.node_options().auto_read_only) {
    context.became_read_only();
  } else if (conflict) {
    co_await driver->close();
    throw Error(EACCES, "The NBD export is read-only");
  }
  co_return std::unique_ptr<Driver>(std::move(driver));
}

}  // namespace

const DriverType nbd_driver = {.name = "nbd", .kind = DriverKind::protocol, .open = open};

}  // namespace vise
