#include "tools/common/arguments.h"

#include <fmt/format.h>
#include <getopt.h>

#include <algorithm>
#include <cstddef>

namespace vise::tools {

bool Arguments::has(int key) const { return last(key) != nullptr; }

const std::string* Arguments::last(int key) const {
  const auto match = std::find_if(options.rbegin(), options.rend(),
                                  [&](const Option& option) { return option.key == key; });
  return match == options.rend() ? nullptr : &match->value;
}

std::string Arguments::value_or(int key, std::string_view otherwise) const {
  const std::string* value = last(key);
  return value != nullptr ? *value : std::string(otherwise);
}

Arguments parse_arguments(std::string_view program, std::span<const std::string> words,
                          std::span<const OptionSpec> specs, std::string_view final_keys) {
  std::string letters;
  std::vector<option> long_options;
  for (const OptionSpec& spec : specs) {
    const bool takes_value = spec.value_name != nullptr;
    if (spec.key < 256) {
      letters += static_cast<char>(spec.key);
      if (takes_value) letters += ':';
    }
    if (spec.long_name != nullptr) {
      long_options.push_back(
          {spec.long_name, takes_value ? required_argument : no_argument, nullptr, spec.key});
    }
  }
  long_options.push_back({});

  std::vector<std::string> storage(words.begin(), words.end());
  storage.insert(storage.begin(), std::string(program));
  std::vector<char*> argv;
  for (std::string& word : storage) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int argc = static_cast<int>(storage.size());

  Arguments result;
  optind = 0;  // glibc: also forgets the state of an earlier call
  opterr = 1;
  for (;;) {
    const int key = getopt_long(argc, argv.data(), letters.c_str(), long_options.data(), nullptr);
    if (key == -1) break;
    if (key == '?') throw UsageError();
    result.options.push_back({key, optarg != nullptr ? optarg : ""});
    if (key < 256 && final_keys.find(static_cast<char>(key)) != std::string_view::npos) {
      return result;
    }
  }
  for (int i = optind; i < argc; ++i) result.operands.emplace_back(argv[i]);
  return result;
}

std::string describe_options(std::span<const OptionSpec> specs) {
  constexpr std::size_t help_column = 32;
  std::string text;
  for (const OptionSpec& spec : specs) {
    std::string line = "  ";
    line += spec.key < 256 ? fmt::format("-{}", static_cast<char>(spec.key)) : "    ";
    if (spec.long_name != nullptr) {
      line += fmt::format("{}--{}", spec.key < 256 ? ", " : "", spec.long_name);
    }
    if (spec.value_name != nullptr) {
      line += fmt::format("{}{}", spec.long_name != nullptr ? "=" : " ", spec.value_name);
    }
    if (line.size() + 2 > help_column) {
      text += line + "\n" + std::string(help_column, ' ');
    } else {
      text += line + std::string(help_column - line.size(), ' ');
    }
    text += std::string(spec.help) + "\n";
  }
  return text;
}

}  // namespace vise::tools
