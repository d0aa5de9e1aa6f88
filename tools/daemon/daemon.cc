#include "tools/daemon/daemon.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "export/export_types.h"
#include "export/nbd_service.h"
#include "monitor/commands.h"
#include "tools/common/output.h"
#include "util/ids.h"
#include "util/json.h"
#include "util/keyval.h"
#include "util/value_reader.h"
#include "vise/error.h"
#include "vise/objects.h"

namespace vise::tools {

namespace {

constexpr KeyvalSyntax syntax_of(std::string_view implied_key) {
  return {.implied_key = implied_key};
}

// JSON where the text starts like an object.
Value::Dict options_of(const std::string& text, std::string_view implied_key) {
  if (!text.starts_with('{')) {
    return nest_dotted_keys(parse_keyval(text, syntax_of(implied_key)).options);
  }
  Value value = json::parse(text);
  return std::move(value.as_dict());
}

std::optional<std::string> take_string(Value::Dict& options, std::string_view name) {
  const std::optional<Value> value = options.take(name);
  if (!value) return std::nullopt;
  return ValueReader(*value, {}, name).string();
}

template <class T>
T read_options(const std::string& text, std::string_view implied_key) {
  const Value value(options_of(text, implied_key));
  T result;
  const ValueInput input = text.starts_with('{') ? ValueInput::json : ValueInput::options;
  read(ValueReader(value, input), result);
  return result;
}

}  // namespace

Daemon::Daemon()
    : graph_(context_), exports_(export_types()), services_(graph_, events_, exports_) {
  add_all_commands(services_.commands());
}

Daemon::~Daemon() = default;

Task<void> Daemon::add_blockdev(std::string text) {
  OpenRequest request;
  request.options = options_of(text, "driver");
  if (!request.options.contains("node-name")) {
    throw Error(EINVAL, "'node-name' must be specified for the root node");
  }
  if (!request.options.contains("driver")) throw Error(EINVAL, "Parameter 'driver' is missing");
  std::shared_ptr<Node> node = co_await graph_.open(std::move(request));
  graph_.adopt(std::move(node));
}

Task<void> Daemon::add_chardev(std::string text) {
  Keyval parsed = parse_keyval(
      text, {.implied_key = "backend", .bare_words = KeyvalSyntax::BareWords::mean_on});
  const std::optional<std::string> id = take_string(parsed.options, "id");
  if (!id) throw Error(EINVAL, "Parameter 'id' is missing");
  require_id(*id, "a chardev");
  if (std::ranges::find(chardevs_, *id, &NamedChardev::id) != chardevs_.end()) {
    throw Error(EEXIST, fmt::format("There is a chardev '{}' already", *id));
  }
  const Value* backend = parsed.options.find("backend");
  if (backend != nullptr && *backend == Value("stdio") && uses_stdio()) {
    throw Error(EBUSY, "cannot use stdio by multiple character devices");
  }
  std::unique_ptr<Chardev> chardev = make_chardev(std::move(parsed.options));
  chardevs_.push_back({*id, std::move(chardev)});
  co_await chardevs_.back().chardev->wait_if_asked();
}

bool Daemon::uses_stdio() const {
  return std::ranges::any_of(chardevs_, [](const auto& one) { return one.chardev->is_stdio(); });
}

void Daemon::add_monitor(const std::string& text) {
  const auto options = read_options<qapi::MonitorOptions>(text, "chardev");
  const auto found = std::ranges::find(chardevs_, options.chardev, &NamedChardev::id);
  if (found == chardevs_.end()) {
    throw Error(ENOENT, fmt::format("chardev \"{}\" not found", options.chardev));
  }
  if (found->used) {
    throw Error(EBUSY, fmt::format("Device '{}' is in use", options.chardev));
  }
  found->used = true;
  const auto layout =
      options.pretty.value_or(false) ? QmpSession::Layout::pretty : QmpSession::Layout::one_line;
  monitors_.push_back(std::make_unique<Monitor>(services_, *found->chardev, layout));
  serving_.spawn(monitors_.back()->run());
}

void Daemon::add_object(const std::string& text) {
  context_.objects().create(options_of(text, "qom-type"));
}

Task<void> Daemon::add_export(std::string text) {
  auto options = read_options<qapi::BlockExportOptions>(text, "type");
  co_await exports_.add(services_, std::move(options));
}

Task<void> Daemon::add_nbd_server(std::string text) {
  auto options = read_options<qapi::NbdServerOptions>(text, {});
  co_await start_nbd_server(services_, std::move(options));
}

Task<void> Daemon::wait_for_end() { co_await services_.quitting().wait(); }

Task<void> Daemon::shut_down() {
  std::exception_ptr failure;
  services_.quit();
  {
    // A command that runs now ends first; none starts any more.
    AsyncMutex::Guard guard = co_await services_.turn().lock();
  }
  co_await services_.jobs().stop_all();
  try {
    co_await exports_.stop_all(services_);
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    co_await stop_nbd_server(services_);
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  try {
    co_await graph_.close_all();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  for (const auto& monitor : monitors_) monitor->stop();
  for (const NamedChardev& one : chardevs_) one.chardev->stop();
  co_await serving_.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace vise::tools
