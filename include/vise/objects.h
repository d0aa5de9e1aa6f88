// Things with an id that nodes and exports refer to: what --object makes.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vise/value.h"

namespace vise {

class Object {
 public:
  virtual ~Object() = default;
};

/// The objects of one program, by id.
class ObjectTable {
 public:
  /// Makes an object of {"qom-type": TYPE, "id": ID, …}, nested or with dotted keys, values as
  /// typed (strings) or JSON. Throws Error(EINVAL / EEXIST).
  void create(Value::Dict options);
  /// Throws Error(ENOENT) for unknown ids, EBUSY for an object that somebody holds.
  void remove(std::string_view id);
  /// Null if there is none. Whoever holds it keeps it alive.
  std::shared_ptr<Object> find(std::string_view id) const;
  /// Names of the types there are, sorted.
  static std::vector<std::string_view> types();

 private:
  std::vector<std::pair<std::string, std::shared_ptr<Object>>> objects_;
};

}  // namespace vise
