// Reading references to other nodes: see qapi_values.h.
#include "util/qapi_values.h"

namespace vise::qapi {
namespace {

void read_child(const ValueReader& from, NullChild null, Value& to) {
  const Value& value = from.value();
  const bool allowed =
      value.is_dict() || value.is_string() || (value.is_null() && null == NullChild::allowed);
  if (!allowed) {
    from.fail_type(null == NullChild::allowed ? "name of a node, its options, or null"
                                              : "name of a node or its options");
  }
  to = value;
}

}  // namespace

void get_child(DictReader& from, std::string_view name, NullChild null, Value& to) {
  const Value* value = from.require_child(name);
  if (value != nullptr) read_child(from.where().member(name, *value), null, to);
}

void get_child(DictReader& from, std::string_view name, NullChild null, std::optional<Value>& to) {
  const Value* value = from.find_child(name);
  if (value != nullptr) read_child(from.where().member(name, *value), null, to.emplace());
}

}  // namespace vise::qapi
