// Numbers and words of options (reference: cli.md 1.1), and OptionReader for drivers out of tree.
#include "vise/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "util/driver_options.h"
#include "util/value_reader.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

[[noreturn]] void refuse_size(std::string_view text) {
  throw Error(EINVAL, fmt::format("'{}' is not a size: expected a number of bytes with an optional "
                                  "suffix k, M, G, T, P or E",
                                  text));
}

[[noreturn]] void refuse_range(std::string_view text) {
  throw Error(ERANGE,
              fmt::format("'{}' is out of range: sizes are 0 to {} bytes", text, INT64_MAX));
}

/// log2 of what the suffix multiplies by, or nothing if there is no such suffix.
std::optional<unsigned> suffix_shift(char suffix) {
  constexpr std::string_view letters = "bkmgtpe";
  const char lower =
      suffix >= 'A' && suffix <= 'Z' ? static_cast<char>(suffix - 'A' + 'a') : suffix;
  const std::size_t index = letters.find(lower);
  if (index == std::string_view::npos) return std::nullopt;
  return static_cast<unsigned>(index) * 10;
}

/// The digits at the front of `rest`, taken off. `exact` is false if they do not fit 64 bits.
std::string_view take_digits(std::string_view& rest) {
  const std::size_t count =
      static_cast<std::size_t>(std::find_if_not(rest.begin(), rest.end(), is_digit) - rest.begin());
  const std::string_view digits = rest.substr(0, count);
  rest.remove_prefix(count);
  return digits;
}

/// `digits` behind a decimal point times 2^shift, to the nearest byte.
std::uint64_t scaled_fraction(std::string_view digits, unsigned shift) {
  // 18 digits are finer than a byte of an exbibyte needs, and keep the product within 128 bits.
  digits = digits.substr(0, 18);
  std::uint64_t numerator = 0;
  std::uint64_t denominator = 1;
  for (const char digit : digits) {
    numerator = numerator * 10 + static_cast<std::uint64_t>(digit - '0');
    denominator *= 10;
  }
  const auto product = static_cast<unsigned __int128>(numerator) << shift;
  return static_cast<std::uint64_t>((product + denominator / 2) / denominator);
}

std::uint64_t parse_hexadecimal(std::string_view digits, std::string_view text) {
  std::uint64_t value = 0;
  const char* const end = digits.data() + digits.size();
  const auto result = std::from_chars(digits.data(), end, value, 16);
  if (result.ptr != end || result.ec == std::errc::invalid_argument) refuse_size(text);
  if (result.ec != std::errc() || value > INT64_MAX) refuse_range(text);
  return value;
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`; '-' and '_' are the same.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  const auto same = [](char x, char y) {
    return x == y || ((x == '-' || x == '_') && (y == '-' || y == '_'));
  };
  std::vector<std::size_t> before(b.size() + 1);
  std::vector<std::size_t> previous(b.size() + 1);
  std::vector<std::size_t> current(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    current[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = previous[j - 1] + (same(a[i - 1], b[j - 1]) ? 0 : 1);
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, replaced});
      if (i > 1 && j > 1 && same(a[i - 1], b[j - 2]) && same(a[i - 2], b[j - 1])) {
        current[j] = std::min(current[j], before[j - 2] + 1);
      }
    }
    std::swap(before, previous);
    std::swap(previous, current);
  }
  return previous[b.size()];
}

}  // namespace

std::uint64_t parse_size(std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty() && (rest.front() == ' ' || (rest.front() >= '\t' && rest.front() <= '\r'))) {
    rest.remove_prefix(1);
  }
  const bool negative = rest.starts_with('-');
  if (negative || rest.starts_with('+')) rest.remove_prefix(1);
  if (rest.starts_with("0x") || rest.starts_with("0X")) {
    const std::uint64_t value = parse_hexadecimal(rest.substr(2), text);
    if (negative) refuse_range(text);
    return value;
  }
  const std::string_view whole = take_digits(rest);
  std::string_view fraction;
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    fraction = take_digits(rest);
  }
  if (whole.empty() && fraction.empty()) refuse_size(text);
  unsigned shift = 0;
  if (!rest.empty()) {
    const auto suffix = suffix_shift(rest.front());
    if (!suffix || rest.size() > 1 || negative) refuse_size(text);
    shift = *suffix;
  }
  const bool has_fraction = fraction.find_first_not_of('0') != std::string_view::npos;
  if (has_fraction && shift == 0) refuse_size(text);
  if (negative) refuse_range(text);

  std::uint64_t value = 0;
  if (!whole.empty()) {
    const auto result = std::from_chars(whole.data(), whole.data() + whole.size(), value);
    if (result.ec != std::errc()) refuse_range(text);
  }
  const auto scaled = checked::shift_left(value, shift);
  if (!scaled) refuse_range(text);
  const auto sum = checked::add(*scaled, scaled_fraction(fraction, shift));
  if (!sum || *sum > INT64_MAX) refuse_range(text);
  return *sum;
}

bool parse_bool(std::string_view text) {
  for (const std::string_view word : {"on", "yes", "true", "y"}) {
    if (text == word) return true;
  }
  for (const std::string_view word : {"off", "no", "false", "n"}) {
    if (text == word) return false;
  }
  throw Error(EINVAL, fmt::format("'{}' is neither 'on' nor 'off'", text));
}

std::optional<std::string> nearest_name(std::string_view word,
                                        const std::vector<std::string>& candidates) {
  constexpr std::size_t longest = 64;  // no option has a longer name; bounds the work
  if (word.size() > longest) return std::nullopt;
  std::optional<std::string> best;
  std::size_t best_distance = SIZE_MAX;
  for (const std::string& candidate : candidates) {
    const std::size_t distance = edit_distance(word, candidate);
    // One edit in three letters is a slip, more is another word.
    const std::size_t allowed =
        std::max<std::size_t>(1, (std::max(word.size(), candidate.size()) + 1) / 3);
    const bool shares_nothing = distance >= std::max(word.size(), candidate.size());
    if (distance <= allowed && !shares_nothing && distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

OptionReader::OptionReader(OpenContext& context) : context_(context) {}

std::optional<std::string> OptionReader::string(std::string_view name) {
  known_.emplace_back(name);
  const auto value = context_.options().take(name);
  if (!value) return std::nullopt;
  return ValueReader(*value, context_.option_path(), name).string();
}

std::optional<bool> OptionReader::boolean(std::string_view name) {
  known_.emplace_back(name);
  const auto value = context_.options().take(name);
  if (!value) return std::nullopt;
  return ValueReader(*value, context_.option_path(), name).boolean();
}

std::optional<std::uint64_t> OptionReader::size(std::string_view name, std::uint64_t minimum,
                                                std::uint64_t maximum) {
  known_.emplace_back(name);
  const auto value = context_.options().take(name);
  if (!value) return std::nullopt;
  const ValueReader reader(*value, context_.option_path(), name);
  const std::uint64_t size = reader.size();
  if (size < minimum || size > maximum) reader.fail_range(minimum, maximum);
  return size;
}

std::optional<std::int64_t> OptionReader::integer(std::string_view name, std::int64_t minimum,
                                                  std::int64_t maximum) {
  known_.emplace_back(name);
  const auto value = context_.options().take(name);
  if (!value) return std::nullopt;
  return ValueReader(*value, context_.option_path(), name).integer(minimum, maximum);
}

std::optional<std::size_t> OptionReader::choice(std::string_view name,
                                                std::initializer_list<std::string_view> names) {
  known_.emplace_back(name);
  const auto value = context_.options().take(name);
  if (!value) return std::nullopt;
  return ValueReader(*value, context_.option_path(), name).choice({names.begin(), names.size()});
}

void OptionReader::finish() {
  if (context_.options().empty()) return;
  fail_unexpected(context_.option_path(), context_.options().begin()->first, known_,
                  node_option_names());
}

}  // namespace vise
