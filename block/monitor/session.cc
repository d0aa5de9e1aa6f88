#include "monitor/session.h"

#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <new>
#include <optional>
#include <utility>

#include "util/json.h"
#include "vise-config.h"

namespace vise {

namespace {

[[noreturn]] void fail(std::string_view text) { throw Error(EINVAL, text); }

[[noreturn]] void fail_not_found(std::string_view text) {
  throw QmpError(ENOENT, "CommandNotFound", text);
}

// Everything of a request but its id, which the answer needs whatever else is wrong.
struct Call {
  std::string name;
  Value arguments = Value::Dict();
};

Call read_call(Value::Dict& request) {
  Call call;
  std::optional<Value> name = request.take("execute");
  std::optional<Value> arguments = request.take("arguments");
  if (arguments && !arguments->is_dict()) {
    fail("QMP input member 'arguments' must be an object");
  }
  if (!request.empty()) {
    fail(fmt::format("QMP input member '{}' is unexpected", request.begin()->first));
  }
  if (!name) fail("QMP input lacks member 'execute'");
  if (!name->is_string()) fail("QMP input member 'execute' must be a string");
  call.name = name->as_string();
  if (arguments) call.arguments = std::move(*arguments);
  return call;
}

Value::Dict error_of(std::string_view class_name, std::string_view text) {
  Value::Dict error;
  error.set("class", class_name);
  error.set("desc", text);
  return error;
}

}  // namespace

qapi::VersionInfo version_info() {
  qapi::VersionInfo info;
  info.qemu = {.major = 7, .minor = 2, .micro = 0};
  info.package = "vise " VISE_VERSION;
  return info;
}

QmpSession::QmpSession(Services& services, Layout layout, Output output)
    : services_(services),
      layout_(layout),
      output_(std::move(output)),
      listening_(services.events().listen(
          [this](std::string_view name, const Value& data) { send_event(name, data); })) {
  Value::Dict greeting;
  greeting.set("version", to_value(version_info()));
  greeting.set("capabilities", Value::List());
  Value::Dict message;
  message.set("QMP", std::move(greeting));
  send(message);
}

QmpSession::~QmpSession() { services_.events().forget(listening_); }

void QmpSession::send(const Value& message) {
  std::string text;
  if (layout_ == Layout::one_line) {
    text = json::print_line(message);
  } else {
    // Strings hold no raw line ends, so these are all the printer's own.
    for (const char c : json::print(message)) text += c == '\n' ? "\r\n" : std::string(1, c);
  }
  output_(text + "\r\n");
}

void QmpSession::send_event(std::string_view name, const Value& data) {
  if (!negotiated_) return;
  const auto since_epoch = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::system_clock::now().time_since_epoch());
  Value::Dict timestamp;
  timestamp.set("seconds", since_epoch.count() / 1'000'000);
  timestamp.set("microseconds", since_epoch.count() % 1'000'000);
  Value::Dict event;
  event.set("timestamp", std::move(timestamp));
  event.set("event", name);
  if (data.is_dict() && !data.as_dict().empty()) event.set("data", data);
  send(event);
}

void QmpSession::feed(std::string_view bytes) {
  stream_.feed(bytes, [this](std::string_view text, std::string_view error) {
    requests_.push_back({std::string(text), std::string(error)});
  });
}

Task<void> QmpSession::run() {
  Request request = std::move(requests_.front());
  requests_.pop_front();
  const Value::Dict message = co_await answer(std::move(request));
  send(message);
}

Task<Value::Dict> QmpSession::answer(Request request) {
  Value::Dict message;
  std::optional<Value> id;
  try {
    if (!request.error.empty()) fail(request.error);
    Value parsed = json::parse(request.text);
    if (!parsed.is_dict()) fail("QMP input must be a JSON object");
    id = parsed.as_dict().take("id");
    Call call = read_call(parsed.as_dict());
    Value result = co_await execute(call.name, std::move(call.arguments));
    message.set("return", std::move(result));
  } catch (const QmpError& error) {
    message.set("error", error_of(error.class_name(), error.message()));
  } catch (const Error& error) {
    message.set("error", error_of("GenericError", error.message()));
  } catch (const std::bad_alloc&) {
    message.set("error", error_of("GenericError", "Out of memory"));
  }
  if (id) message.set("id", std::move(*id));
  co_return message;
}

void QmpSession::negotiate(const Value& arguments) {
  if (negotiated_) {
    fail_not_found("Capabilities negotiation is already complete, command ignored");
  }
  qapi::QmpCapabilitiesArguments wanted;
  read(ValueReader(arguments, ValueInput::json), wanted);
  if (wanted.enable && !wanted.enable->empty()) {
    fail(fmt::format("Capability '{}' is not offered", to_string(wanted.enable->front())));
  }
  negotiated_ = true;
}

Task<Value> QmpSession::execute(const std::string& name, Value arguments) {
  if (name == qapi::command::qmp_capabilities::name) {
    negotiate(arguments);
    co_return Value(Value::Dict());
  }
  if (!negotiated_) {
    fail_not_found("Expecting capabilities negotiation with 'qmp_capabilities'");
  }
  const CommandTable::Run run = services_.commands().find(name);
  if (run == nullptr) fail_not_found(fmt::format("The command {} has not been found", name));
  AsyncMutex::Guard guard = co_await services_.turn().lock();
  co_return co_await run(services_, std::move(arguments));
}

}  // namespace vise
