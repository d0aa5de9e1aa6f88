// Reading a driver's options by hand: for drivers out of tree. Those in the tree use the types
// generated from qapi/.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vise/value.h"

namespace vise {

class OpenContext;

/// Takes options one by one out of OpenContext::options(). Each getter accepts the JSON type and
/// the string form ("4k", "on"), throws Error(EINVAL) that names the option and the allowed
/// values, and gives nothing if the option is absent.
class OptionReader {
 public:
  explicit OptionReader(OpenContext& context);

  std::optional<std::string> string(std::string_view name);
  std::optional<bool> boolean(std::string_view name);
  std::optional<std::uint64_t> size(std::string_view name, std::uint64_t minimum = 0,
                                    std::uint64_t maximum = INT64_MAX);
  std::optional<std::int64_t> integer(std::string_view name, std::int64_t minimum,
                                      std::int64_t maximum);
  /// The index of the value in `names`.
  std::optional<std::size_t> choice(std::string_view name,
                                    std::initializer_list<std::string_view> names);

  /// Throws Error(EINVAL) if an option is left, naming it and the nearest known one.
  void finish();

 private:
  OpenContext& context_;
  std::vector<std::string> known_;
};

/// Parses a size as the command lines do: "1.5k", "64M", "0x1000". Throws Error(EINVAL / ERANGE).
std::uint64_t parse_size(std::string_view text);
/// on off yes no true false y n. Throws Error(EINVAL).
bool parse_bool(std::string_view text);
/// The candidate with the smallest edit distance to `word`, if near enough to be meant.
std::optional<std::string> nearest_name(std::string_view word,
                                        const std::vector<std::string>& candidates);

}  // namespace vise
