// Commands about the program itself.
#include "monitor/commands.h"
#include "monitor/services.h"
#include "monitor/session.h"
#include "qapi/qapi-introspect.h"
#include "util/json.h"
#include "vise/context.h"
#include "vise/objects.h"

namespace vise {

namespace {

Task<qapi::VersionInfo> query_version(Services&) { co_return version_info(); }

Task<std::vector<qapi::CommandInfo>> query_commands(Services&) {
  std::vector<qapi::CommandInfo> result;
  for (const std::string_view name : qapi::command_names()) result.push_back({std::string(name)});
  co_return result;
}

Task<std::vector<Value>> query_qmp_schema(Services&) {
  Value schema = json::parse(qapi::introspection_json());
  co_return std::move(schema.as_list());
}

Task<void> quit(Services& services) {
  services.quit();
  co_return;
}

// The table of objects reads the options itself: what it makes may refer to other objects.
Task<Value> object_add(Services& services, Value arguments) {
  qapi::ObjectOptions typed;
  read(ValueReader(arguments, ValueInput::json), typed);
  services.context().objects().create(std::move(arguments.as_dict()));
  co_return Value(Value::Dict());
}

Task<void> object_del(Services& services, qapi::ObjectDelArguments arguments) {
  services.context().objects().remove(arguments.id);
  co_return;
}

}  // namespace

void add_monitor_commands(CommandTable& commands) {
  namespace command = qapi::command;
  commands.add<command::query_version, query_version>();
  commands.add<command::query_commands, query_commands>();
  commands.add<command::query_qmp_schema, query_qmp_schema>();
  commands.add<command::quit, quit>();
  commands.add(command::object_add::name, object_add);
  commands.add<command::object_del, object_del>();
}

}  // namespace vise
