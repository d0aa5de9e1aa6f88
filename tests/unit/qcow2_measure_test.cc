// The size of new images, by the formula of the reference and by the real qemu-img.
#include "format/qcow2/measure.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "qcow2_file_fixture.h"

namespace vise::qcow2 {
namespace {

Value::Dict options(std::initializer_list<std::pair<const char*, std::string>> list) {
  Value::Dict dict;
  for (const auto& [name, value] : list) dict.set(name, value);
  return dict;
}

MeasureResult sizes(const Value::Dict& chosen, std::uint64_t size) {
  return measure_sizes(CreateOptions::parse(chosen).header(size), 0);
}

TEST(Measure, FollowsTheReference) {
  const MeasureResult result = sizes({}, std::uint64_t{1} << 30);
  EXPECT_EQ(result.required, 393216u);
  EXPECT_EQ(result.fully_allocated, 1074135040u);
}

TEST(Measure, TwoBitmapsTakeFiveClusters) {
  const Header header = CreateOptions().header(64 << 20);
  const BitmapSize size = measure_bitmap(header, 65536, 2);
  EXPECT_EQ(2 * size.clusters_bytes + 65536, 327680u);
}

class MeasureByBoth : public QcowFileTest {
 protected:
  void SetUp() override {
    if (!have_qemu_img()) GTEST_SKIP() << "qemu-img is not installed";
  }
  static std::uint64_t number(const std::string& json, const std::string& key) {
    const std::size_t at = json.find("\"" + key + "\": ");
    return at == std::string::npos ? UINT64_MAX : std::stoull(json.substr(at + key.size() + 4));
  }
  MeasureResult ours(const Value::Dict& chosen) {
    OpenRequest request;
    request.options.set("driver", "file");
    request.options.set("filename", file());
    std::unique_ptr<Child> source = run(graph_.open_root(std::move(request)));
    MeasureRequest measured;
    measured.size = source->size();
    measured.options = chosen;
    measured.source = &source->node();
    const MeasureResult result = run(measure(measured));
    run(source->detach());
    return result;
  }
};

TEST_F(MeasureByBoth, AgreesOverAMatrix) {
  for (const char* cluster_size : {"512", "4096", "65536", "2097152"}) {
    for (const char* bits : {"1", "16", "64"}) {
      for (const std::uint64_t size : {0ull, 1000ull, 100ull << 20, (7ull << 30) + 12345}) {
        const MeasureResult result =
            sizes(options({{"cluster_size", cluster_size}, {"refcount_bits", bits}}), size);
        const std::string json =
            run_command("qemu-img measure --output=json -O qcow2 --size " + std::to_string(size) +
                        " -o cluster_size=" + cluster_size + ",refcount_bits=" + bits)
                .output;
        SCOPED_TRACE(testing::Message() << cluster_size << " " << bits << " " << size);
        EXPECT_EQ(result.required, number(json, "required"));
        EXPECT_EQ(result.fully_allocated, number(json, "fully-allocated"));
      }
    }
  }
}

TEST_F(MeasureByBoth, AgreesOnASourceWithHoles) {
  write_file(file(), std::vector<std::byte>(200000, std::byte{1}));
  std::filesystem::resize_file(file(), 50 << 20);
  {
    std::fstream out(file(), std::ios::in | std::ios::out | std::ios::binary);
    out.seekp((30 << 20) + 5000);
    out << "data";
  }
  for (const char* extra : {"", ",preallocation=falloc"}) {
    for (const char* cluster_size : {"512", "4096", "65536", "2097152"}) {
      Value::Dict chosen = options({{"cluster_size", cluster_size}});
      if (*extra != '\0') chosen.set("preallocation", "falloc");
      const MeasureResult result = ours(chosen);
      const std::string json = run_command(
                                   "qemu-img measure --output=json -f raw -O qcow2 -o "
                                   "cluster_size=" +
                                   std::string(cluster_size) + extra + " " + file())
                                   .output;
      EXPECT_EQ(result.required, number(json, "required")) << cluster_size << extra;
      EXPECT_EQ(result.fully_allocated, number(json, "fully-allocated")) << cluster_size;
      EXPECT_FALSE(result.bitmaps);
    }
  }
}

}  // namespace
}  // namespace vise::qcow2
