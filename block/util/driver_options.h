// A driver's options as the type that qapi/ declares for them:
//
//     auto options = read_options<qapi::BlockdevOptionsFile>(context);
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "qapi/qapi-types.h"
#include "util/value_reader.h"
#include "vise/graph.h"

namespace vise {

/// The options that every node has: the graph takes them before a driver sees its own.
std::vector<std::string> node_option_names();

/// Reads T from the options of the driver that is being opened. What T does not declare is
/// refused, naming the nearest it does. What has been read is taken out of context.options();
/// references to children ("file", "backing", …) are left there for open_child(), and are missing
/// from the result where a plain file name stands in for them.
template <class T>
T read_options(OpenContext& context) {
  const Value all(context.options());
  const ValueReader where(all, ValueInput::options, context.option_path());
  DictReader reader(where, DictReader::MissingChildren::allowed);
  reader.suggest(node_option_names());
  T result;
  read_members(reader, result);
  reader.finish();
  for (const std::string& name : reader.names_without_children()) context.options().erase(name);
  return result;
}

/// Reads T from a tree of options that stand alone (creation options, tests, QMP arguments).
template <class T>
T read_value(const Value& value, ValueInput input, std::string_view prefix = {}) {
  T result;
  read(ValueReader(value, input, prefix), result);
  return result;
}

}  // namespace vise
