#include "tools/common/sizes.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>

namespace vise::tools {

std::string image_size_text(std::uint64_t bytes) {
  static constexpr std::array units = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  // %.3g drops trailing zeros and turns 999.5 into 1e+03, which is what
  // scripts have been reading for years.
  return fmt::format("{:.3g} {}", value, units[unit]);
}

std::string io_size_text(double bytes) {
  static constexpr std::array units = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = bytes;
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  std::string digits = unit == 0 ? fmt::format("{:.6f}", value) : fmt::format("{:.3f}", value);
  const std::size_t point = digits.find('.');
  if (digits.find_first_not_of('0', point + 1) == std::string::npos) digits.resize(point);
  return fmt::format("{} {}", digits, units[unit]);
}

}  // namespace vise::tools
