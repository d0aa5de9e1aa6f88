// Names every built-in driver. (No static initialisers: a driver that is not here does not exist.)
#include "vise/driver_table.h"

namespace vise {

struct DriverTable::Plugin {};

DriverTable::DriverTable() = default;
DriverTable::~DriverTable() = default;

void DriverTable::add(const DriverType& type) { types_.push_back(&type); }

const DriverType* DriverTable::find(std::string_view name) {
  for (const DriverType* type : types_) {
    if (type->name == name) return type;
  }
  return nullptr;
}

}  // namespace vise
