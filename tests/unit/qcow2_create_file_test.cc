// DriverType::create of qcow2 on real files: what is left when it fails, and preallocation.
#include "format/qcow2/create.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>

#include "qcow2_file_fixture.h"

namespace vise::qcow2 {
namespace {

class CreateFile : public QcowFileTest {
 protected:
  void create_image(const Value::Dict& options, std::uint64_t size, bool incomplete = false) {
    if (!std::filesystem::exists(file())) std::ofstream(file()).flush();
    OpenRequest request;
    request.options.set("driver", "file");
    request.options.set("filename", file());
    const std::shared_ptr<Node> node = run(graph_.open(std::move(request)));
    struct Release {
      CreateFile& test;
      std::shared_ptr<Node> node;
      ~Release() { test.run(test.graph_.release(node)); }
    } release{*this, node};
    CreateRequest creation{
        .graph = graph_, .filename = file(), .size = size, .options = options, .file = node};
    creation.incomplete = incomplete;
    run(create(creation));
  }
  std::uint64_t allocated_bytes() const {
    struct stat status = {};
    stat(file().c_str(), &status);
    return static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  static Value::Dict options(const char* name, const char* value) {
    Value::Dict dict;
    dict.set(name, value);
    return dict;
  }
};

TEST_F(CreateFile, WritesWhatIsPlanned) {
  for (const char* cluster_size : {"512", "64k", "2M"}) {
    const Value::Dict chosen = options("cluster_size", cluster_size);
    create_image(chosen, std::uint64_t{3} << 30);
    EXPECT_TRUE(read_file(file()) == new_image(chosen, std::uint64_t{3} << 30)) << cluster_size;
  }
}

TEST_F(CreateFile, NothingOfAnOlderFileShinesThrough) {
  write_file(file(), std::vector<std::byte>(5 << 20, std::byte{0x55}));
  create_image({}, 1 << 30);
  EXPECT_TRUE(read_file(file()) == new_image({}, 1 << 30));
}

TEST_F(CreateFile, BadOptionsLeaveTheFileAsItWas) {
  const std::vector<std::byte> before(70000, std::byte{0x55});
  write_file(file(), before);
  const std::vector<std::pair<Value::Dict, int>> cases = {
      {options("cluster_size", "3k"), EINVAL},
      {options("no_such_option", "1"), EINVAL},
      {options("encrypt.format", "luks"), ENOTSUP},
  };
  for (const auto& [bad, code] : cases) {
    expect_error(code, "", [&] { create_image(bad, 1 << 20); });
  }
  Value::Dict long_name = options("cluster_size", "512");
  long_name.set("backing_file", std::string(500, 'b'));
  expect_error(ENOSPC, "first cluster", [&] { create_image(long_name, 1 << 20); });
  expect_error(EFBIG, "larger than",
               [&] { create_image(options("cluster_size", "512"), std::uint64_t{1} << 50); });
  EXPECT_EQ(read_file(file()), before);
}

TEST_F(CreateFile, PreallocatedMetadataIsSparse) {
  create_image(options("preallocation", "metadata"), std::uint64_t{20} << 30);
  EXPECT_LT(allocated_bytes(), 16u << 20);
  const CheckResult result = check(Repair::none);
  EXPECT_EQ(result.corruptions + result.leaks, 0u) << findings_;
  EXPECT_EQ(result.allocated_clusters, result.total_clusters);
}

TEST_F(CreateFile, FallocAndFullTakeTheSpace) {
  for (const char* how : {"falloc", "full"}) {
    create_image(options("preallocation", how), 8 << 20);
    EXPECT_GE(allocated_bytes(), 8u << 20) << how;
    const CheckResult result = check(Repair::none);
    EXPECT_EQ(result.corruptions + result.leaks, 0u) << findings_;
  }
}

TEST_F(CreateFile, IncompleteImagesOpenForTheirMakerAlone) {
  create_image({}, 8 << 20, true);
  OpenRequest request;
  request.filename = file();
  request.format = "qcow2";
  for (const OpenPurpose purpose : {OpenPurpose::io, OpenPurpose::info, OpenPurpose::check}) {
    request.defaults.purpose = purpose;
    expect_error(ENOTSUP, "incomplete", [&] { run(graph_.open_root(request)); });
  }
  for (const bool complete : {false, true}) {
    request.defaults.purpose = OpenPurpose::make;
    std::unique_ptr<Child> root = run(graph_.open_root(request));
    const std::vector<std::byte> data(65536, std::byte{0x11});
    run(root->write(GuestOffset(0), ConstIoVec(std::span(data))));
    if (complete) dynamic_cast<Completable&>(root->node().driver()).complete();
    run(root->detach());
    request.defaults.purpose = OpenPurpose::io;
    if (!complete) expect_error(ENOTSUP, "incomplete", [&] { run(graph_.open_root(request)); });
  }
  std::unique_ptr<Child> root = run(graph_.open_root(request));
  run(root->detach());
  const CheckResult result = check(Repair::none);
  EXPECT_EQ(result.corruptions + result.leaks, 0u) << findings_;
}

TEST_F(CreateFile, MarkedImagesDifferFromOthersInTheirHeaderAlone) {
  for (const char* preallocation : {"off", "metadata", "falloc", "full"}) {
    const Value::Dict chosen = options("preallocation", preallocation);
    create_image(chosen, 4 << 20);
    const std::vector<std::byte> plain = read_file(file());
    write_file(file(), std::vector<std::byte>(5 << 20, std::byte{0x55}));
    create_image(chosen, 4 << 20, true);
    std::vector<std::byte> marked = read_file(file());
    ASSERT_EQ(marked.size(), plain.size()) << preallocation;
    EXPECT_NE(marked, plain) << preallocation;
    std::copy_n(plain.begin(), 65536, marked.begin());
    EXPECT_TRUE(marked == plain) << preallocation;
  }
}

TEST_F(CreateFile, VersionTwoHasNoPlaceForTheMark) {
  create_image(options("compat", "0.10"), 1 << 20, true);
  EXPECT_TRUE(read_file(file()) == new_image(options("compat", "0.10"), 1 << 20));
}

}  // namespace
}  // namespace vise::qcow2
