// Names every type of object, as driver_table.cc does with drivers.
#include "vise/objects.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "filter/throttle_group.h"
#include "util/base64.h"
#include "util/driver_options.h"
#include "util/ids.h"
#include "util/iothread.h"
#include "util/keyval.h"
#include "util/secret.h"
#include "util/tls_credentials.h"
#include "vise/error.h"
#include "vise/options.h"

namespace vise {

namespace {

struct ObjectType {
  std::string_view name;
  std::shared_ptr<Object> (*make)(const Value::Dict& options);
};

std::shared_ptr<Object> make_iothread(const Value::Dict& options) {
  read_value<qapi::IothreadProperties>(options, ValueInput::options);
  return std::make_shared<Iothread>();
}

std::shared_ptr<Object> make_secret(const Value::Dict& options) {
  const auto properties = read_value<qapi::SecretProperties>(options, ValueInput::options);
  if (properties.data.has_value() == properties.file.has_value()) {
    throw Error(EINVAL, "A secret needs either 'data' or 'file'");
  }
  std::string text = properties.data ? *properties.data : Secret::read_file(*properties.file);
  if (properties.format == qapi::SecretFormat::base64) text = decode_base64(text);
  return std::make_shared<Secret>(std::move(text));
}

// In alphabetical order.
constexpr std::array object_types = {ObjectType{"authz-simple", make_authz_simple},
                                     ObjectType{"iothread", make_iothread},
                                     ObjectType{"secret", make_secret},
                                     ObjectType{"throttle-group", make_throttle_group},
                                     ObjectType{"tls-creds-psk", make_tls_creds_psk},
                                     ObjectType{"tls-creds-x509", make_tls_creds_x509}};

std::string take_text(Value::Dict& options, std::string_view name) {
  const std::optional<Value> value = options.take(name);
  if (!value) throw Error(EINVAL, fmt::format("Parameter '{}' is missing", name));
  if (!value->is_string()) {
    throw Error(EINVAL, fmt::format("Invalid parameter type for '{}', expected: string", name));
  }
  return value->as_string();
}

const ObjectType& type_of_name(const std::string& name) {
  const auto found = std::ranges::find(object_types, name, &ObjectType::name);
  if (found != object_types.end()) return *found;
  std::string message = fmt::format("Unknown object type '{}'", name);
  const auto known = ObjectTable::types();
  const std::vector<std::string> names(known.begin(), known.end());
  message += fmt::format(": must be {}", fmt::join(names, ", "));
  throw Error(EINVAL, message);
}

}  // namespace

void ObjectTable::create(Value::Dict options) {
  options = nest_dotted_keys(std::move(options));
  const ObjectType& type = type_of_name(take_text(options, "qom-type"));
  std::string id = take_text(options, "id");
  require_id(id, "an object");
  if (find(id) != nullptr) {
    throw Error(EEXIST, fmt::format("There is an object with the id '{}' already", id));
  }
  objects_.emplace_back(std::move(id), type.make(options));
}

void ObjectTable::remove(std::string_view id) {
  const auto found = std::ranges::find(objects_, id, &decltype(objects_)::value_type::first);
  if (found == objects_.end()) {
    throw Error(ENOENT, fmt::format("object '{}' not found", id));
  }
  if (found->second.use_count() > 1) {
    throw Error(EBUSY, fmt::format("object '{}' is in use, can not be deleted", id));
  }
  objects_.erase(found);
}

std::shared_ptr<Object> ObjectTable::find(std::string_view id) const {
  for (const auto& [name, object] : objects_) {
    if (name == id) return object;
  }
  return nullptr;
}

std::vector<std::string_view> ObjectTable::types() {
  std::vector<std::string_view> names;
  for (const ObjectType& type : object_types) names.push_back(type.name);
  return names;
}

}  // namespace vise
