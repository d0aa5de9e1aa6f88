#include "tools/common/snapshot_list.h"

#include <fmt/format.h>

#include <ctime>
#include <string_view>

#include "tools/common/sizes.h"

namespace vise::tools {

namespace {

std::uint64_t number(const Value& snapshot, std::string_view key) {
  const Value* value = snapshot.as_dict().find(key);
  return value != nullptr && value->is_integer() ? value->as_uint() : 0;
}

std::string text(const Value& snapshot, std::string_view key) {
  const Value* value = snapshot.as_dict().find(key);
  return value != nullptr && value->is_string() ? value->as_string() : std::string();
}

std::string date_text(std::uint64_t seconds) {
  const auto time = static_cast<std::time_t>(seconds);
  std::tm local = {};
  char buffer[64] = "";
  if (localtime_r(&time, &local) != nullptr) {
    (void)std::strftime(buffer, sizeof buffer, "%Y-%m-%d %H:%M:%S", &local);
  }
  return buffer;
}

std::string clock_text(std::uint64_t seconds, std::uint64_t nanoseconds) {
  return fmt::format("{:04}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60,
                     nanoseconds / 1'000'000);
}

std::string row(std::string_view id, std::string_view name, std::string_view size,
                std::string_view date, std::string_view clock, std::string_view icount) {
  return fmt::format("{:<7} {:<16} {:>8} {:>19} {:>15} {:>10}\n", id, name, size, date, clock,
                     icount);
}

}  // namespace

std::string snapshot_list_text(const Value::List& snapshots, unsigned indent) {
  const std::string pad(indent, ' ');
  std::string result = pad + "Snapshot list:\n";
  result += pad + row("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
  for (const Value& snapshot : snapshots) {
    const Value* icount = snapshot.as_dict().find("icount");
    result +=
        pad + row(text(snapshot, "id"), text(snapshot, "name"),
                  image_size_text(number(snapshot, "vm-state-size")),
                  date_text(number(snapshot, "date-sec")),
                  clock_text(number(snapshot, "vm-clock-sec"), number(snapshot, "vm-clock-nsec")),
                  icount != nullptr ? fmt::format("{}", icount->as_int()) : "--");
  }
  return result;
}

}  // namespace vise::tools
