// The names of the options that every node has, as the schema says.
#include "util/driver_options.h"

namespace vise {

std::vector<std::string> node_option_names() {
  // A reader that finds nothing still notes what it was asked for.
  const Value empty{Value::Dict()};
  const ValueReader where(empty, ValueInput::options);
  DictReader reader(where);
  qapi::BlockdevOptionsCommon common;
  read_members(reader, common);
  std::vector<std::string> names = reader.names_without_children();
  names.emplace_back("driver");
  return names;
}

}  // namespace vise
