#include "tools/common/objects.h"

#include <fmt/format.h>

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

bool add_objects(const Arguments& arguments, ObjectTable& objects) {
  for (const Arguments::Option& option : arguments.options) {
    if (option.key != key::object) continue;
    if (option.value == "help" || option.value == "?") {
      print("List of user creatable objects:\n");
      for (const std::string_view type : ObjectTable::types()) print(fmt::format("  {}\n", type));
      return false;
    }
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
