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

class GraphOpen : public GraphTest {
 protected:
  GraphOpen() {
    std::string pattern = std::filesystem::temp_directory_path() / "vise-graph-XXXXXX";
    folder_ = mkdtemp(pattern.data());
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

}  // namespace
}  // namespace vise
