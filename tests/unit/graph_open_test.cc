// Opening nodes: option trees, plain names, probing, names in images, errors.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "memory_driver.h"
#include "util/json.h"

namespace vise {
namespace {

using test::GraphTest;
using test::MemoryDisk;

// A format whose image is two lines of text: "CHAIN" and the name of its backing image. Its disk is
// 64 KiB that nothing is allocated of.
class ChainDriver final : public Driver {
 public:
  ChainDriver(std::unique_ptr<Child> file, std::unique_ptr<Child> backing)
      : file_(std::move(file)), backing_(std::move(backing)) {}
  std::uint64_t size() const override { return 65536; }
  Task<Extent> map(GuestRange range, MapMode) override {
    co_return Extent{.kind = Extent::Kind::backing, .length = range.length};
  }
  Task<void> read(GuestOffset offset, IoVec data) override {
    if (backing_) return backing_->read(offset, data);
    return zeros(data);
  }
  Task<void> write(GuestOffset, ConstIoVec, WriteFlags) override { throw Error(ENOTSUP, "no"); }
  Task<void> flush() override { co_return; }
  Task<void> close() override {
    if (backing_) co_await backing_->detach();
    co_await file_->detach();
  }

 private:
  static Task<void> zeros(IoVec data) {
    data.fill(std::byte{0});
    co_return;
  }
  std::unique_ptr<Child> file_;
  std::unique_ptr<Child> backing_;
};

Task<std::unique_ptr<Driver>> open_chain(OpenContext& context) {
  std::unique_ptr<Child> file = co_await context.open_child(std::string("file"), EdgeRole::storage);
  std::string text(file->size(), '\0');
  co_await file->read(GuestOffset(0), IoVec(std::as_writable_bytes(std::span(text))));
  OpenRequest request;
  request.filename = text.substr(std::string_view("CHAIN\n").size());
  while (request.filename.ends_with('\n')) request.filename.pop_back();
  std::unique_ptr<Child> backing =
      co_await context.open_child(std::string("backing"), EdgeRole::backing, std::move(request));
  co_return std::make_unique<ChainDriver>(std::move(file), std::move(backing));
}

int probe_chain(std::span<const std::byte> head) {
  return head.size() >= 6 && std::memcmp(head.data(), "CHAIN\n", 6) == 0 ? 100 : 0;
}

const DriverType chain_driver = {
    .name = "chain", .kind = DriverKind::format, .open = open_chain, .probe = probe_chain};

class GraphOpen : public GraphTest {
 protected:
  GraphOpen() {
    std::string pattern = std::filesystem::temp_directory_path() / "vise-graph-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    context_.drivers().add(chain_driver);
  }
  ~GraphOpen() override { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& name, const std::string& content) {
    const std::string path = folder_ / name;
    std::ofstream(path) << content;
    return path;
  }

  OpenRequest request(std::string filename, std::string format = {}, bool read_only = true) {
    OpenRequest request;
    request.filename = std::move(filename);
    request.format = std::move(format);
    request.defaults.read_only = read_only;
    return request;
  }
  std::string read(Child& child, std::uint64_t offset, std::size_t length) {
    std::string text(length, '\0');
    run(child.read(GuestOffset(offset), std::as_writable_bytes(std::span(text))));
    return text;
  }

  std::string chain(const std::string& name, const std::string& backing) {
    return file(name, "CHAIN\n" + backing + "\n");
  }
  std::string open_failure(OpenRequest request, int* code = nullptr) {
    const std::string text = failure(graph_.open_root(std::move(request)), code);
    EXPECT_TRUE(graph_.nodes().empty()) << text;
    return text;
  }

  std::filesystem::path folder_;
};

TEST_F(GraphOpen, APlainFileOpensAsRaw) {
  const std::string path = file("a", "hello world");
  auto root = run(graph_.open_root(request(path)));
  EXPECT_EQ(root->node().type().name, "raw");
  EXPECT_EQ(root->size(), 11u);
  EXPECT_EQ(read(*root, 6, 5), "world");
  EXPECT_EQ(root->node().filename(), path);
  EXPECT_EQ(warnings_, "");
  run(root->detach());
  EXPECT_TRUE(graph_.nodes().empty());
}

TEST_F(GraphOpen, JsonNamesDescribeTrees) {
  const std::string path = file("a", std::string(1024, 'x') + "hello");
  const std::string name =
      "json:{'driver':'raw','offset':'1024','file':{'driver':'file',"
      "'filename':'" +
      path + "'}}";
  auto root = run(graph_.open_root(request(name)));
  EXPECT_EQ(read(*root, 0, 5), "hello");
  EXPECT_EQ(root->node().filename(),
            "json:{\"offset\": \"1024\", \"driver\": \"raw\", \"file\": {\"driver\": \"file\", "
            "\"filename\": \"" +
                path + "\"}}");
  run(root->detach());
}

TEST_F(GraphOpen, AnEmptyFileIsRawOfSizeZero) {
  auto root = run(graph_.open_root(request(file("empty", ""))));
  EXPECT_EQ(root->node().type().name, "raw");
  EXPECT_EQ(root->size(), 0u);
  run(root->detach());
}

TEST_F(GraphOpen, ContentDecidesTheFormatUnlessItIsNamed) {
  const std::string path = chain("a", "");
  auto probed = run(graph_.open_root(request(path)));
  EXPECT_EQ(probed->node().type().name, "chain");
  EXPECT_EQ(probed->node().filename(), path);
  run(probed->detach());
  auto named = run(graph_.open_root(request(path, "raw")));
  EXPECT_EQ(named->node().type().name, "raw");
  run(named->detach());
}

TEST_F(GraphOpen, OptionTreesWithoutDriverAreProbed) {
  OpenRequest request;
  request.options.set("file.filename", chain("a", ""));
  auto root = run(graph_.open_root(std::move(request)));
  EXPECT_EQ(root->node().type().name, "chain");
  run(root->detach());
}

TEST_F(GraphOpen, TheFormatReplacesTheDriverOfAJsonName) {
  const std::string name =
      "json:{'driver':'chain','file':{'driver':'file','filename':'" + chain("a", "") + "'}}";
  auto root = run(graph_.open_root(request(name, "raw")));
  EXPECT_EQ(root->node().type().name, "raw");
  run(root->detach());
}

TEST_F(GraphOpen, ColonsAndPrefixes) {
  const std::string path = file("x:y", "colon");
  for (const std::string& name : {path, "file:" + path}) {
    auto root = run(graph_.open_root(request(name)));
    EXPECT_EQ(read(*root, 0, 5), "colon") << name;
    run(root->detach());
  }
  auto null = run(graph_.open_root(request("null-co://", "raw")));
  EXPECT_EQ(null->size(), 1u << 30);
  EXPECT_EQ(null->node().filename(), "null-co://");
  run(null->detach());
}

TEST_F(GraphOpen, NamesThatOnlyAddRuntimeOptionsStayPlain) {
  const std::string path = file("a", "x");
  OpenRequest request;
  request.filename =
      "json:{'driver':'raw','read-only':true,'file':{'driver':'file','aio':'threads',"
      "'filename':'" +
      path + "'}}";
  auto root = run(graph_.open_root(std::move(request)));
  EXPECT_EQ(root->node().filename(), path);
  run(root->detach());
}

TEST_F(GraphOpen, FailuresSayWhatIsWrong) {
  const std::string path = file("a", "x");
  const std::string json_file = "'file':{'driver':'file','filename':'" + path + "'}";
  struct Case {
    std::string filename;
    std::string format;
    const char* text;
  };
  const Case cases[] = {
      {"", "", "'driver' is missing"},
      {"/nowhere/x", "", "'/nowhere/x'"},
      {"a:b", "", "Unknown protocol 'a'"},
      {path, "rwa", "did you mean 'raw'?"},
      {"json:{'driver':'raw'}", "", "'file' is missing"},
      {"json:{'driver':'raw','file':'nobody'}", "", "no node named 'nobody'"},
      {"json:{'driver':'raw','file':7}", "", "expected: name of a node or its options"},
      {"json:{'driver':'raw','sise':1," + json_file + "}", "", "sise"},
      {"json:{'driver':'raw','offset':5," + json_file + "}", "", "'offset' is 5"},
      {"json:{'driver':'raw','size':5," + json_file + "}", "", "'size' is 5"},
      {"json:{'driver':'raw','node-name':'1x'," + json_file + "}", "", "'1x' is not a node name"},
      {"json:{'driver':'raw','cache':{'indirect':true}," + json_file + "}", "", "cache.indirect"},
      {"json:{'driver':'raw','detect-zeroes':'unmap'," + json_file + "}", "", "discard=unmap"},
      {"json:{'driver':7}", "", "'driver' must be a string"},
      {"json:[1]", "", "must hold an object"},
      {"json:{", "", "json:{"},
      {"json:{'driver':'raw','file.driver':'file','file.filename':'" + path +
           "','node-name':'same','file.node-name':'same'}",
       "", "named 'same'"},
  };
  for (const Case& c : cases) {
    const std::string text = open_failure(request(c.filename, c.format));
    EXPECT_NE(text.find(c.text), std::string::npos) << c.filename << " -> " << text;
  }
}

TEST_F(GraphOpen, GuessedRawImagesAreProtectedAgainstBecomingAnotherFormat) {
  const std::string path = file("a", std::string(2048, 'x'));
  auto root = run(graph_.open_root(request(path, "", false)));
  EXPECT_EQ(std::count(warnings_.begin(), warnings_.end(), '\n'), 3);
  EXPECT_NE(warnings_.find("WARNING: "), std::string::npos);
  const std::string header = "CHAIN\n/etc/passwd\n";
  int code = 0;
  failure(root->write(GuestOffset(0), std::as_bytes(std::span(header))), &code);
  EXPECT_EQ(code, EPERM);
  EXPECT_EQ(read(*root, 0, 6), "xxxxxx");
  run(root->write(GuestOffset(512), std::as_bytes(std::span(header))));
  run(root->write(GuestOffset(3), std::as_bytes(std::span(header))));
  run(root->detach());
}

TEST_F(GraphOpen, ANamedRawImageTakesAnyContent) {
  const std::string path = file("a", std::string(2048, 'x'));
  auto root = run(graph_.open_root(request(path, "raw", false)));
  EXPECT_EQ(warnings_, "");
  const std::string header = "CHAIN\n/etc/passwd\n";
  run(root->write(GuestOffset(0), std::as_bytes(std::span(header))));
  run(root->detach());
}

TEST_F(GraphOpen, BackingChainsMayBeLong) {
  constexpr int images = 150;
  chain("0", "");
  for (int i = 1; i < images; ++i) chain(std::to_string(i), std::to_string(i - 1));
  auto root = run(graph_.open_root(request(folder_ / std::to_string(images - 1))));
  int depth = 0;
  const Node* node = &root->node();
  while (const Child* backing = node->backing_child()) {
    node = &backing->node();
    EXPECT_TRUE(node->read_only());
    ++depth;
  }
  EXPECT_EQ(depth, images - 1);
  EXPECT_EQ(graph_.nodes().size(), 2u * images);
  EXPECT_EQ(read(*root, 0, 1), std::string(1, '\0'));
  const BlockStatus status = run(block_status(root->node(), GuestRange{GuestOffset(0), 65536}));
  EXPECT_EQ(status.depth, images - 1);
  EXPECT_TRUE(status.zero && !status.allocated);
  run(root->detach());
  EXPECT_TRUE(graph_.nodes().empty());
}

TEST_F(GraphOpen, EndlessChainsAreRefused) {
  for (int i = 0; i < 450; ++i) chain(std::to_string(i), std::to_string(i + 1));
  int code = 0;
  open_failure(request(folder_ / "0"), &code);
  EXPECT_EQ(code, ELOOP);
}

TEST_F(GraphOpen, LoopsInBackingChainsAreFound) {
  chain("a", "b");
  chain("b", "c");
  chain("c", "a");
  chain("self", "self");
  std::filesystem::create_hard_link(folder_ / "a", folder_ / "other-name-of-a");
  chain("c", "other-name-of-a");
  for (const char* name : {"a", "b", "self"}) {
    int code = 0;
    const std::string text = open_failure(request(folder_ / name), &code);
    EXPECT_EQ(code, ELOOP) << text;
    EXPECT_NE(text.find("loop"), std::string::npos) << text;
  }
}

TEST_F(GraphOpen, BackingNamesAreRelativeToTheOverlay) {
  std::filesystem::create_directory(folder_ / "sub");
  chain("sub/top", "../base");
  file("base", std::string(65536, 'b'));
  auto root = run(graph_.open_root(request(folder_ / "sub/top")));
  EXPECT_EQ(read(*root, 0, 3), "bbb");
  run(root->detach());
}

TEST_F(GraphOpen, AMissingBackingFileIsNamed) {
  const std::string top = chain("top", "gone");
  int code = 0;
  const std::string text = open_failure(request(top), &code);
  EXPECT_EQ(code, ENOENT);
  EXPECT_NE(text.find("top': Could not open backing file 'gone'"), std::string::npos) << text;
}

TEST_F(GraphOpen, NamesInImagesAreOnlyFileNames) {
  const std::string secret = file("secret", std::string(65536, 's'));
  const std::string json =
      "json:{'driver':'raw','file.driver':'file','file.filename':'" + secret + "'}";
  const std::string top = chain("top", json);
  int code = 0;
  open_failure(request(top), &code);
  EXPECT_EQ(code, EACCES);
  open_failure(request(chain("null", "null-co://")), &code);
  EXPECT_EQ(code, EACCES);
  file("un:known", std::string(65536, 'u'));
  auto plain = run(graph_.open_root(request(chain("plain", "un:known"))));
  EXPECT_EQ(read(*plain, 0, 1), "u");
  run(plain->detach());

  graph_.trust_image_names = true;
  auto root = run(graph_.open_root(request(top)));
  EXPECT_EQ(read(*root, 0, 1), "s");
  run(root->detach());
}

TEST_F(GraphOpen, TheUserMayReplaceTheBackingFile) {
  const std::string other = file("other", std::string(65536, 'o'));
  OpenRequest with = request(chain("top", "gone"));
  with.options.set("backing.driver", "raw");
  with.options.set("backing.file.driver", "file");
  with.options.set("backing.file.filename", other);
  auto root = run(graph_.open_root(std::move(with)));
  EXPECT_EQ(read(*root, 0, 1), "o");
  EXPECT_TRUE(root->node().filename().starts_with("json:")) << root->node().filename();
  run(root->detach());

  OpenRequest without = request(folder_ / "top");
  without.options.set("backing", Value());
  auto alone = run(graph_.open_root(std::move(without)));
  EXPECT_EQ(alone->node().backing_child(), nullptr);
  run(alone->detach());

  OpenRequest closed = request(folder_ / "top");
  closed.open_backing = false;
  auto top = run(graph_.open_root(std::move(closed)));
  EXPECT_EQ(top->node().backing_child(), nullptr);
  run(top->detach());
}

TEST_F(GraphOpen, NodesMayBeReferredToByName) {
  MemoryDisk disk;
  disk.bytes.assign(1000, std::byte{'m'});
  OpenRequest base;
  base.options = test::memory_options(disk);
  base.options.set("node-name", "base");
  std::shared_ptr<Node> node = run(graph_.open(std::move(base)));
  graph_.adopt(node);
  OpenRequest raw;
  raw.options.set("driver", "raw");
  raw.options.set("offset", 100);
  raw.options.set("file", "base");
  auto root = run(graph_.open_root(std::move(raw)));
  EXPECT_EQ(root->size(), 900u);
  EXPECT_EQ(read(*root, 0, 1), "m");
  run(root->detach());
  EXPECT_FALSE(disk.closed);
  run(graph_.disown(*node));
  EXPECT_TRUE(disk.closed);
}

TEST_F(GraphOpen, OptionsAreInherited) {
  MemoryDisk disk;
  OpenRequest request;
  request.options.set("driver", "raw");
  request.options.set("file", test::memory_options(disk));
  request.options.set("read-only", "on");
  request.options.set("force-share", "on");
  request.options.set("cache.direct", "on");
  request.options.set("discard", "off");
  auto root = run(graph_.open_root(std::move(request)));
  const NodeOptions& options = root->node().child("file")->node().options();
  EXPECT_TRUE(options.read_only && options.force_share && options.cache_direct);
  EXPECT_FALSE(options.cache_no_flush);
  EXPECT_TRUE(options.discard_unmap);
  run(root->detach());
}

TEST_F(GraphOpen, RawKeepsToItsWindow) {
  MemoryDisk disk;
  disk.bytes.assign(10'000, std::byte{1});
  disk.limits.request_alignment = 512;
  Value::Dict options;
  options.set("driver", "raw");
  options.set("offset", 1000);
  options.set("size", "3001");
  options.set("file", test::memory_options(disk));
  auto root = open(std::move(options));
  EXPECT_EQ(root->size(), 3001u);
  const std::vector<std::byte> data(3001, std::byte{2});
  run(root->write(GuestOffset(0), ConstIoVec(std::span(data))));
  for (std::size_t i = 0; i < disk.bytes.size(); ++i) {
    ASSERT_EQ(disk.bytes[i], i >= 1000 && i < 4001 ? std::byte{2} : std::byte{1}) << i;
  }
  int code = 0;
  failure(root->truncate(5000), &code);
  EXPECT_EQ(code, ENOTSUP);
  const Extent extent = run(root->map(GuestRange{GuestOffset(10), 100}));
  EXPECT_EQ(extent.host, HostOffset(1010));
  run(root->detach());
}

}  // namespace
}  // namespace vise
