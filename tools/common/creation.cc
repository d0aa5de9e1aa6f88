#include "tools/common/creation.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <utility>

#include "graph/file_names.h"
#include "util/keyval.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/error.h"
#include "vise/image_operations.h"
#include "vise/options.h"

namespace vise::tools {

namespace {

const CreateOption* find_in(std::span<const CreateOption> options, std::string_view name) {
  const auto match = std::find_if(options.begin(), options.end(),
                                  [&](const CreateOption& option) { return option.name == name; });
  return match == options.end() ? nullptr : &*match;
}

std::string_view type_text(CreateOption::Type type) {
  switch (type) {
    case CreateOption::Type::string:
      return "str";
    case CreateOption::Type::size:
      return "size";
    case CreateOption::Type::number:
      return "num";
    case CreateOption::Type::boolean:
      return "bool (on/off)";
  }
  return "str";
}

std::int64_t parse_number(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const std::int64_t number = std::strtoll(text.c_str(), &end, 0);
  if (text.empty() || *end != '\0' || errno != 0) {
    throw Error(EINVAL, fmt::format("'{}' is not an integer", text));
  }
  return number;
}

Value typed_value(const CreateOption& option, const std::string& text) {
  try {
    switch (option.type) {
      case CreateOption::Type::size:
        return parse_size(text);
      case CreateOption::Type::number:
        return parse_number(text);
      case CreateOption::Type::boolean:
        (void)parse_bool(text);
        break;
      case CreateOption::Type::string:
        break;
    }
  } catch (Error& error) {
    error.add_context(fmt::format("Option '{}'", option.name));
    throw;
  }
  return text;
}

[[noreturn]] void fail_unknown(const CreationTypes& types, std::string_view name) {
  std::vector<std::string> known;
  for (const CreateOption& option : types.options()) known.emplace_back(option.name);
  const std::optional<std::string> nearest = nearest_name(name, known);
  throw Error(EINVAL,
              fmt::format("Format '{}' has no creation option '{}'{}", types.format->name, name,
                          nearest ? fmt::format("; did you mean '{}'?", *nearest) : ""));
}

std::string with_doubled_commas(std::string_view text) {
  std::string result;
  for (const char c : text) {
    result += c;
    if (c == ',') result += c;
  }
  return result;
}

std::string printed_value(const Value& value) {
  if (value.is_string()) return with_doubled_commas(value.as_string());
  if (value.is_bool()) return value.as_bool() ? "on" : "off";
  return fmt::format("{}", static_cast<std::int64_t>(value.as_uint()));
}

}  // namespace

std::vector<CreateOption> CreationTypes::options() const {
  std::vector<CreateOption> result(format->create_options.begin(), format->create_options.end());
  if (find_in(result, "size") == nullptr) {
    result.insert(result.begin(), {"size", CreateOption::Type::size, "Virtual disk size"});
  }
  if (protocol == nullptr || protocol == format) return result;
  for (const CreateOption& option : protocol->create_options) {
    if (find_in(result, option.name) == nullptr) result.push_back(option);
  }
  return result;
}

const CreateOption* CreationTypes::find(std::string_view name) const {
  const CreateOption* option = find_in(format->create_options, name);
  if (option == nullptr && protocol != nullptr) option = find_in(protocol->create_options, name);
  return option;
}

CreationTypes creation_types(DriverTable& drivers, std::string_view format,
                             const std::optional<std::string>& filename) {
  CreationTypes types;
  types.format = drivers.find(format);
  if (types.format == nullptr) throw Error(EINVAL, fmt::format("Unknown format '{}'", format));
  if (types.format->create == nullptr) {
    throw Error(ENOTSUP, fmt::format("Format '{}' cannot be created", format));
  }
  if (!filename) return types;
  if (filename->starts_with(json_prefix)) {
    throw Error(EINVAL, "A json: name cannot be created, only opened");
  }
  const Value::Dict options = protocol_options(*filename, drivers);
  types.protocol = drivers.find(options.find("driver")->as_string());
  if (types.protocol == nullptr || types.protocol->create == nullptr) {
    throw Error(ENOTSUP, fmt::format("Protocol '{}' cannot create images",
                                     options.find("driver")->as_string()));
  }
  return types;
}

Value::Dict parse_creation_options(const CreationTypes& types,
                                   const std::vector<std::string>& lists) {
  Value::Dict result;
  for (const std::string& list : lists) {
    Keyval parsed = parse_keyval(list, creation_options_syntax);
    for (auto& [written, value] : parsed.options) {
      std::string name = written;
      std::string text = value.as_string();
      const CreateOption* option = types.find(name);
      const bool bare = std::find(parsed.bare_words.begin(), parsed.bare_words.end(), name) !=
                        parsed.bare_words.end();
      if (option == nullptr && bare && name.starts_with("no")) {
        name.erase(0, 2);
        text = "off";
        option = types.find(name);
      }
      static constexpr CreateOption size = {"size", CreateOption::Type::size, {}};
      if (option == nullptr && name == "size") option = &size;
      if (option == nullptr) fail_unknown(types, written);
      result.set(name, typed_value(*option, text));
    }
  }
  return result;
}

std::string creation_help(const CreationTypes& types, bool with_filename) {
  std::vector<CreateOption> options = types.options();
  std::sort(options.begin(), options.end(),
            [](const CreateOption& a, const CreateOption& b) { return a.name < b.name; });
  std::string text = with_filename ? "Supported options:\n"
                                   : fmt::format("Supported {} options:\n", types.format->name);
  for (const CreateOption& option : options) {
    const std::string field = fmt::format("{}=<{}>", option.name, type_text(option.type));
    fmt::format_to(std::back_inserter(text), "  {:<22} - {}\n", field, option.description);
  }
  if (!with_filename) {
    text +=
        "\nThe protocol of the file may have more options;\n"
        "with a file name they are listed, too.\n";
  }
  return text;
}

std::string formatting_line(const CreationTypes& types, const std::string& filename,
                            const Value::Dict& options) {
  std::string line = fmt::format("Formatting '{}', fmt={}", filename, types.format->name);
  for (const CreateOption& option : types.options()) {
    const Value* value = options.find(option.name);
    if (value != nullptr) {
      line += fmt::format(" {}={}", option.name, printed_value(*value));
    } else if (!option.default_value.empty()) {
      line += fmt::format(" {}={}", option.name, option.default_value);
    }
  }
  return line + "\n";
}

namespace {

std::string path_in(const Value::Dict& protocol, const std::string& otherwise) {
  const Value* path = protocol.find("filename");
  return path != nullptr && path->is_string() ? path->as_string() : otherwise;
}

// The options of one of the two, with the size left out: the request says it.
Value::Dict options_of(std::span<const CreateOption> known, const Value::Dict& options) {
  Value::Dict result;
  for (const auto& [name, value] : options) {
    if (name != "size" && find_in(known, name) != nullptr) result.set(name, value);
  }
  return result;
}

Value::Dict without(Value::Dict options, const Value::Dict& taken) {
  for (const auto& [name, value] : taken) options.erase(name);
  return options;
}

Task<void> format_file(Graph& graph, const DriverType& format, std::string filename,
                       std::uint64_t size, Value::Dict options, Value::Dict protocol,
                       NewImage content) {
  OpenRequest open;
  open.options = std::move(protocol);
  std::shared_ptr<Node> file = co_await graph.open(std::move(open));
  CreateRequest request{graph, std::move(filename), size, std::move(options), file};
  request.incomplete = content == NewImage::to_be_filled;
  std::exception_ptr failure;
  try {
    co_await format.create(request);
  } catch (...) {
    failure = std::current_exception();
  }
  request.file.reset();
  co_await graph.release(std::move(file));
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

std::string file_path(const std::string& filename, DriverTable& drivers) {
  return path_in(protocol_options(filename, drivers), filename);
}

Task<void> create_image(Graph& graph, CreationTypes types, std::string filename, std::uint64_t size,
                        Value::Dict options, NewImage content) {
  Value::Dict protocol = protocol_options(filename, graph.context().drivers());
  const std::string path = path_in(protocol, filename);
  if (types.format->kind == DriverKind::protocol) {
    CreateRequest request{graph, path, size, options_of(types.format->create_options, options),
                          nullptr};
    co_await types.format->create(request);
    co_return;
  }
  const Value::Dict for_format = options_of(types.format->create_options, options);
  const Value::Dict for_protocol =
      without(options_of(types.protocol->create_options, options), for_format);
  struct stat status = {};
  const bool existed = stat(path.c_str(), &status) == 0;
  if (!existed || !for_protocol.empty()) {
    CreateRequest request{graph, path, 0, for_protocol, nullptr};
    co_await types.protocol->create(request);
  }
  std::exception_ptr failure;
  try {
    co_await format_file(graph, *types.format, filename, size, for_format, std::move(protocol),
                         content);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  if (!existed) (void)unlink(path.c_str());
  std::rethrow_exception(failure);
}

void mark_complete(const Child& root) {
  if (auto* image = dynamic_cast<Completable*>(&root.node().driver())) image->complete();
}

}  // namespace vise::tools
