// Compressing in place while a guest writes, with the clusters moved together after that: in every
// state that a power failure leaves, and whatever request fails, the guest finds what it wrote, and
// the metadata is sound.
#include <gtest/gtest.h>

#include "copy/compress_in_place.h"
#include "crash/configs.h"
#include "vise/event_loop.h"

namespace vise::crash {
namespace {

constexpr unsigned requests_per_run = 60;
std::uint64_t compressed = 0;  // bytes, by all runs of one case
std::uint64_t moved = 0;

Task<void> compress_again_and_again(Graph& graph, Node& node, const bool& guest_ended) {
  const Permissions wanted{PermissionSet(Permission::consistent_read) | Permission::write_unchanged,
                           Permissions::all()};
  std::unique_ptr<Child> image = co_await graph.attach(
      nullptr, std::string("compress"), EdgeRole::root, node.shared_from_this(), wanted);
  std::exception_ptr failure;
  for (bool last = false; !last;) {
    // Each run drains the node: the guest must get somewhere in between.
    for (int i = 0; i < 50 && !guest_ended; ++i) co_await EventLoop::current().yield();
    last = guest_ended;  // the guest's last writes are still to be compressed
    InPlaceRequest request;
    request.image = image.get();
    request.options.compact = true;
    try {
      const InPlaceProgress done = co_await compress_in_place(std::move(request));
      compressed += done.compressed;
      moved += done.moved;
    } catch (...) {
      failure = std::current_exception();
    }
  }
  co_await image->detach();
  if (failure) std::rethrow_exception(failure);
}

std::vector<Config> configs() {
  std::vector<Config> all = qcow2_configs();
  // Host clusters that only one compressed cluster may use are refused.
  std::erase_if(all, [](const Config& c) { return c.name.ends_with("refcount1"); });
  for (Config& config : all) config.beside = compress_again_and_again;
  return all;
}

class CrashInPlace : public testing::TestWithParam<Config> {
 protected:
  CrashInPlace() { compressed = moved = 0; }
};

TEST_P(CrashInPlace, APowerFailureLosesNothingThatWasFlushed) {
  const Settings settings = Settings::from_environment();
  const unsigned runs = settings.runs != 0 ? settings.runs : 4;
  Rig rig(GetParam());
  for (std::uint64_t seed = settings.seed; seed < settings.seed + runs; ++seed) {
    ASSERT_EQ(rig.crash_and_examine(seed, requests_per_run, {}), "");
  }
  // A filter in that mode leaves nothing to compress.
  EXPECT_EQ(compressed == 0, GetParam().compress_mode == "all-writes");
  EXPECT_GT(moved, 0u);
  std::cout << compressed << " bytes compressed, " << moved << " moved, " << rig.states()
            << " states from seed " << settings.seed << "\n";
}

TEST_P(CrashInPlace, AFailedRequestHarmsNothing) {
  Rig rig(GetParam());
  const std::uint64_t seed = Settings::from_environment().seed;
  for (const bool all_later : {false, true}) {
    ASSERT_EQ(
        rig.fail_each({.target = Disk::Fault::Target::write, .all_later = all_later}, seed, 15),
        "");
  }
  ASSERT_EQ(rig.fail_each({.target = Disk::Fault::Target::flush}, seed, 15), "");
}

INSTANTIATE_TEST_SUITE_P(Qcow2, CrashInPlace, testing::ValuesIn(configs()), config_name);

}  // namespace
}  // namespace vise::crash
