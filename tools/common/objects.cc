#include "tools/common/objects.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "tools/common/output.h"
#include "util/json.h"
#include "util/keyval.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

constexpr KeyvalSyntax object_syntax{.implied_key = "qom-type"};

Value::Dict object_options(const std::string& text) {
  if (!text.starts_with('{')) return parse_keyval(text, object_syntax).options;
  Value value = json::parse(text);
  if (!value.is_dict()) throw Error(EINVAL, "--object needs a JSON object");
  return std::move(value.as_dict());
}

}  // namespace

bool answer_object_help(const Arguments& arguments) {
  const auto asks = [](const Arguments::Option& option) {
    return option.key == key::object && (option.value == "help" || option.value == "?");
  };
  if (std::ranges::none_of(arguments.options, asks)) return false;
  print("List of user creatable objects:\n");
  for (const std::string_view type : ObjectTable::types()) print(fmt::format("  {}\n", type));
  return true;
}

bool add_objects(const Arguments& arguments, ObjectTable& objects) {
  if (answer_object_help(arguments)) return false;
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != key::object) continue;
    try {
      objects.create(object_options(option.value));
    } catch (Error& error) {
      error.add_context("--object");
      throw;
    }
  }
  return true;
}

}  // namespace vise::tools
