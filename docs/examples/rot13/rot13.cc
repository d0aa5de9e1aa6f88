// rot13: a filter that rotates letters. Useless, and complete: an option, reads, writes, errors.
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <vise/filter.h>
#include <vise/graph.h>
#include <vise/options.h>
#include <vise/plugin.h>

namespace {

using namespace vise;

class Rot13 final : public Filter {
 public:
  Rot13(std::unique_ptr<Child> child, int shift) : Filter(std::move(child)), shift_(shift) {}

  Limits limits() const override {
    Limits limits = Filter::limits();
    limits.can_compress = false;  // encoded clusters would pass by unrotated
    return limits;
  }

  Task<void> read(GuestOffset offset, IoVec data) override {
    co_await Filter::read(offset, data);
    data.for_each([&](std::span<std::byte> part) { rotate(part, shift_); });
  }

  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    Buffer rotated(data.size());  // the caller's memory is not ours to change
    data.copy_to(rotated);
    rotate(rotated, -shift_);
    co_await Filter::write(offset, ConstIoVec(rotated.span()), flags);
  }

  Task<EncodedRun> read_encoded(GuestRange) override {
    co_return EncodedRun();  // as above
  }

 private:
  static void rotate(std::span<std::byte> bytes, int shift) {
    for (std::byte& byte : bytes) {
      const char c = static_cast<char>(byte);
      const char first = c >= 'a' && c <= 'z' ? 'a' : 'A';
      if (c < first || c > first + 25) continue;
      byte = static_cast<std::byte>(first + (c - first + shift + 26) % 26);
    }
  }

  const int shift_;  // -25 to 25
};

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  OptionReader options(context);
  const int shift = static_cast<int>(options.integer("shift", -25, 25).value_or(13));
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("file"), EdgeRole::filtered);
  options.finish();
  co_return std::make_unique<Rot13>(std::move(child), shift);
}

constexpr DriverType rot13 = {.name = "rot13", .kind = DriverKind::filter, .open = open};
constexpr PluginInfo plugin = {plugin_abi_version, 1, &rot13};

}  // namespace

extern "C" const vise::PluginInfo* vise_plugin() { return &plugin; }
