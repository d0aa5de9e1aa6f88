// Finds drivers by name: the built-in table, then plugins.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vise/driver.h"

namespace vise {

class DriverTable {
 public:
  /// The built-in drivers of block/driver_table.cc.
  DriverTable();
  ~DriverTable();
  DriverTable(const DriverTable&) = delete;

  /// Null if there is no such driver, built in or as a plugin. Loads the plugin when first named.
  /// Throws Error if the plugin is there but cannot be loaded or has another ABI version.
  const DriverType* find(std::string_view name);
  /// The same, but throws Error(ENOENT) naming the nearest known driver.
  const DriverType& get(std::string_view name);
  /// The best prober of `head`, or the raw driver.
  const DriverType& probe(std::span<const std::byte> head);

  /// For tests and embedders; `type` must outlive the table.
  void add(const DriverType& type);

  /// Names of all drivers, plugins in the folders included, sorted.
  std::vector<std::string> names();
  std::span<const DriverType* const> types() const { return types_; }

 private:
  struct Plugin;
  const DriverType* find_loaded(std::string_view name) const;

  std::vector<const DriverType*> types_;
  std::vector<std::unique_ptr<Plugin>> plugins_;
};

}  // namespace vise
