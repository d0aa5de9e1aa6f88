// The QMP protocol of one connection: text in, text out. What carries the text is monitor.h.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <string_view>

#include "monitor/json_stream.h"
#include "monitor/services.h"

namespace vise {

class QmpSession {
 public:
  enum class Layout { one_line, pretty };
  /// Takes whole messages, line end included.
  using Output = std::function<void(std::string text)>;

  /// Greets at once. All but the strings it hands out is borrowed.
  QmpSession(Services& services, Layout layout, Output output);
  QmpSession(const QmpSession&) = delete;
  ~QmpSession();

  /// Bytes from the client, in any chunks. What they complete waits for run().
  void feed(std::string_view bytes);
  bool has_requests() const { return !requests_.empty(); }
  /// Answers the oldest request.
  Task<void> run();

 private:
  // A message as it came, or what is wrong with it.
  struct Request {
    std::string text;
    std::string error;
  };

  void send(const Value& message);
  void send_event(std::string_view name, const Value& data);
  Task<Value::Dict> answer(Request request);
  Task<Value> execute(const std::string& name, Value arguments);
  void negotiate(const Value& arguments);

  Services& services_;
  const Layout layout_;
  const Output output_;
  JsonStream stream_;
  std::deque<Request> requests_;
  bool negotiated_ = false;
  EventBus::Handle listening_;
};

/// What query-version and the greeting tell.
qapi::VersionInfo version_info();

}  // namespace vise
