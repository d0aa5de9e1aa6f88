#include "tools/nbd/list.h"

#include <fmt/format.h>

#include <string>

#include "protocol/nbd/client.h"
#include "tools/common/objects.h"
#include "util/tls_credentials.h"
#include "vise/error.h"

namespace vise::tools {

namespace {

std::string flags_text(std::uint32_t bits) {
  struct Flag {
    unsigned bit;
    const char* word;
  };
  constexpr Flag flags[] = {
      {1, "readonly"}, {2, "flush"}, {3, "fua"},   {4, "rotational"}, {5, "trim"},
      {6, "zeroes"},   {7, "df"},    {8, "multi"}, {10, "cache"},     {11, "fast-zero"},
  };
  std::string words;
  for (const Flag& flag : flags) {
    if ((bits >> flag.bit & 1) != 0) words += fmt::format(" {}", flag.word);
  }
  return fmt::format("{:#x} ({} )", bits, words);
}

std::string text_of(const nbd::ExportDescription& about) {
  std::string text = fmt::format(" export: '{}'\n", about.name);
  if (!about.description.empty()) {
    text += fmt::format("  description: {}\n", about.description);
  }
  if (!about.error.empty()) return text + fmt::format("  error: {}\n", about.error);
  text += fmt::format("  size:  {}\n", about.size);
  text += fmt::format("  flags: {}\n", flags_text(about.flags));
  if (about.minimum > 0) {
    text += fmt::format("  min block: {}\n", about.minimum);
    text += fmt::format("  opt block: {}\n", about.preferred);
    text += fmt::format("  max block: {}\n", about.maximum);
  }
  text += "  transaction size: 32-bit\n";
  if (about.contexts.empty()) return text;
  text += fmt::format("  available meta contexts: {}\n", about.contexts.size());
  for (const std::string& name : about.contexts) text += fmt::format("   {}\n", name);
  return text;
}

}  // namespace

int list_exports(const Program&, const NbdArguments& arguments) {
  nbd::Target target{.address = *arguments.address, .export_name = {}, .tls = nullptr};
  // Nobody listens on "any address"; it means this host.
  if (target.address.host == "0.0.0.0") target.address.host = "localhost";
  ObjectTable objects;
  if (!add_objects(arguments.words, objects)) return 0;
  if (!arguments.tls_creds.empty()) {
    target.tls =
        find_tls_credentials(objects, arguments.tls_creds, TlsCredentials::Endpoint::client);
  }
  const std::vector<nbd::ExportDescription> exports = nbd::client().list(target);
  print(fmt::format("exports available: {}\n", exports.size()));
  for (const nbd::ExportDescription& about : exports) print(text_of(about));
  return 0;
}

}  // namespace vise::tools
