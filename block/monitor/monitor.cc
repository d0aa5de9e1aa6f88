#include "monitor/monitor.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <deque>
#include <string>
#include <utility>

#include "vise/sync.h"

namespace vise {

class Monitor::Connection {
 public:
  Connection(Services& services, CharStream stream, QmpSession::Layout layout)
      : services_(services),
        stream_(std::move(stream)),
        readable_(stream_.input.get(), FdWatch::Until::readable),
        writable_(stream_.output.get(), FdWatch::Until::writable),
        session_(services, layout, [this](std::string text) { send(std::move(text)); }) {}

  Task<void> serve() {
    TaskScope writer;
    writer.spawn(write_all());
    co_await read_all();
    finish();
    co_await writer.join();
  }

  void stop() {
    stopped_ = true;
    readable_.cancel();
    drained_.wake_all();
    finish();
    grace_.start(std::chrono::seconds(1), [this] { writable_.cancel(); });
  }

 private:
  void send(std::string text) {
    if (broken_) return;
    pending_bytes_ += text.size();
    pending_.push_back(std::move(text));
    if (pending_bytes_ > most_pending) disconnect();
    added_.wake_all();
  }

  void disconnect() {
    broken_ = true;
    pending_.clear();
    pending_bytes_ = 0;
    readable_.cancel();
    writable_.cancel();
    drained_.wake_all();
    added_.wake_all();
  }

  // No more is sent than what there is.
  void finish() {
    finishing_ = true;
    added_.wake_all();
  }

  // Commands come from clients, so a program that ends takes no more of them.
  bool ends() const { return stopped_ || broken_ || services_.quitting().is_set(); }

  Task<void> answer_all() {
    while (session_.has_requests() && !ends()) {
      co_await session_.run();
      while (pending_bytes_ > high_water && !ends()) co_await drained_.wait();
    }
  }

  Task<void> read_all() {
    std::array<char, 16384> chunk;
    while (!readable_.cancelled()) {
      const ssize_t length = ::read(stream_.input.get(), chunk.data(), chunk.size());
      if (length > 0) {
        session_.feed({chunk.data(), static_cast<std::size_t>(length)});
        co_await answer_all();
      } else if (length < 0 && (errno == EAGAIN || errno == EINTR)) {
        co_await readable_.wait();
      } else {
        break;
      }
    }
  }

  Task<void> write_all() {
    while (!broken_) {
      if (pending_.empty()) {
        if (finishing_) break;
        co_await added_.wait();
        continue;
      }
      const std::string& text = pending_.front();
      const ssize_t length =
          ::write(stream_.output.get(), text.data() + sent_, text.size() - sent_);
      if (length >= 0) {
        took(static_cast<std::size_t>(length));
      } else if (errno == EAGAIN && !writable_.cancelled()) {
        co_await writable_.wait();
      } else if (errno != EINTR) {
        disconnect();
      }
    }
  }

  void took(std::size_t length) {
    sent_ += length;
    pending_bytes_ -= length;
    if (sent_ == pending_.front().size()) {
      pending_.pop_front();
      sent_ = 0;
    }
    drained_.wake_all();
  }

  Services& services_;
  CharStream stream_;
  FdWatch readable_;
  FdWatch writable_;
  Timer grace_;
  std::deque<std::string> pending_;
  std::size_t pending_bytes_ = 0;
  std::size_t sent_ = 0;  // of the first one
  bool stopped_ = false;
  bool broken_ = false;
  bool finishing_ = false;
  WaitQueue added_;
  WaitQueue drained_;
  QmpSession session_;
};

Monitor::Monitor(Services& services, Chardev& chardev, QmpSession::Layout layout)
    : services_(services), chardev_(chardev), layout_(layout) {}

Monitor::~Monitor() = default;

Task<void> Monitor::run() {
  while (!stopped_) {
    CharStream stream = co_await chardev_.next();
    if (!stream.input.valid() || stopped_) break;
    connection_ = std::make_unique<Connection>(services_, std::move(stream), layout_);
    co_await connection_->serve();
    connection_.reset();
  }
}

void Monitor::stop() {
  stopped_ = true;
  chardev_.stop();
  if (connection_) connection_->stop();
}

}  // namespace vise
