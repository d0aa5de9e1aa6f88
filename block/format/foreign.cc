// Formats that others know and we do not. An image of one of them must not be taken for raw, which
// would give its header to a guest or write over it.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <string_view>

#include "format/formats.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise {

namespace {

using namespace std::string_view_literals;

bool has_at(std::span<const std::byte> head, std::size_t offset, std::string_view magic) {
  if (head.size() < offset + magic.size()) return false;
  return std::ranges::equal(head.subspan(offset, magic.size()), magic,
                            [](std::byte a, char b) { return a == static_cast<std::byte>(b); });
}

template <const auto& magics>
int probe(std::span<const std::byte> head) {
  const auto found = [&](const auto& magic) { return has_at(head, magic.offset, magic.text); };
  return std::ranges::any_of(magics, found) ? 100 : 0;
}

Task<std::unique_ptr<Driver>> refuse(OpenContext& context) {
  throw Error(ENOTSUP,
              fmt::format("Images of format '{}' are not supported", context.node().type().name))
      .with_hint("Format raw, given explicitly, takes their bytes as they are");
  co_return nullptr;
}

struct Magic {
  std::size_t offset;
  std::string_view text;
};
constexpr std::array bochs = {Magic{0, "Bochs Virtual HD Image"}};
constexpr std::array cloop = {Magic{0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop"}};
constexpr std::array luks = {Magic{0, "LUKS\xba\xbe"}};
constexpr std::array parallels = {Magic{0, "WithoutFreeSpace"}, Magic{0, "WithouFreSpacExt"}};
constexpr std::array qcow = {Magic{0, "QFI\xfb\0\0\0\1"sv}};
constexpr std::array qed = {Magic{0, "QED\0"sv}};
constexpr std::array vdi = {Magic{64, "\x7f\x10\xda\xbe"}};
constexpr std::array vhdx = {Magic{0, "vhdxfile"}};
constexpr std::array vmdk = {Magic{0, "KDMV"}, Magic{0, "COWD"}, Magic{0, "# Disk DescriptorFile"}};
constexpr std::array vpc = {Magic{0, "conectix"}};

constexpr DriverKind format = DriverKind::format;
constexpr DriverType types[] = {
    {.name = "bochs", .kind = format, .open = refuse, .probe = probe<bochs>},
    {.name = "cloop", .kind = format, .open = refuse, .probe = probe<cloop>},
    {.name = "luks", .kind = format, .open = refuse, .probe = probe<luks>},
    {.name = "parallels", .kind = format, .open = refuse, .probe = probe<parallels>},
    {.name = "qcow", .kind = format, .open = refuse, .probe = probe<qcow>},
    {.name = "qed", .kind = format, .open = refuse, .probe = probe<qed>},
    {.name = "vdi", .kind = format, .open = refuse, .probe = probe<vdi>},
    {.name = "vhdx", .kind = format, .open = refuse, .probe = probe<vhdx>},
    {.name = "vmdk", .kind = format, .open = refuse, .probe = probe<vmdk>},
    {.name = "vpc", .kind = format, .open = refuse, .probe = probe<vpc>},
};

}  // namespace

const DriverType* probe_foreign(std::span<const std::byte> head) {
  const auto* match =
      std::ranges::find_if(types, [&](const DriverType& type) { return type.probe(head) > 0; });
  return match != std::end(types) ? match : nullptr;
}

bool is_foreign_format(std::string_view name) {
  return std::ranges::any_of(types, [&](const DriverType& type) { return type.name == name; });
}

}  // namespace vise
