#include "monitor/command.h"

#include <algorithm>
#include <cassert>

namespace vise {

void CommandTable::add(std::string_view name, Run run) {
  assert(find(name) == nullptr);
  commands_.emplace_back(name, run);
}

CommandTable::Run CommandTable::find(std::string_view name) const {
  for (const auto& [known, run] : commands_) {
    if (known == name) return run;
  }
  return nullptr;
}

std::vector<std::string_view> CommandTable::names() const {
  std::vector<std::string_view> result;
  for (const auto& [name, run] : commands_) result.push_back(name);
  std::ranges::sort(result);
  return result;
}

void require_no_arguments(const Value& arguments) {
  if (arguments.as_dict().empty()) return;
  fail_unexpected({}, arguments.as_dict().begin()->first, {});
}

}  // namespace vise
