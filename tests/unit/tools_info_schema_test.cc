// What `info` gathers is what the schema declares: every format that can be created is read back
// by the strict reader, which refuses members it does not know and misses none it needs.
#include <gtest/gtest.h>

#include <string>

#include "qapi/qapi-types.h"
#include "temporary_file.h"
#include "tools/img/image_info.h"
#include "util/driver_options.h"
#include "util/json.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/event_loop.h"
#include "vise/graph.h"

namespace vise {
namespace {

class InfoSchema : public testing::Test {
 protected:
  InfoSchema() : graph_(context_) {}

  template <class T>
  T run(Task<T> task) {
    return context_.loop().run(std::move(task));
  }

  void create(const DriverType& format, std::uint64_t size) {
    file_.set_content("");
    OpenRequest request;
    request.options.set("driver", "file");
    request.options.set("filename", file_.path());
    std::shared_ptr<Node> node = run(graph_.open(std::move(request)));
    CreateRequest creation{graph_, file_.path(), size, {}, node};
    run(format.create(creation));
    creation.file = nullptr;
    run(graph_.release(std::move(node)));
  }

  Value info(const DriverType& format) {
    OpenRequest request;
    request.filename = file_.path();
    request.format = format.name;
    request.defaults.read_only = true;
    auto root = run(graph_.open_root(std::move(request)));
    Value result = run(tools::image_info(root->node()));
    run(root->detach());
    return result;
  }

  TemporaryFile file_;
  Context context_;
  Graph graph_;
};

TEST_F(InfoSchema, EveryFormatFitsIt) {
  for (const DriverType* format : context_.drivers().types()) {
    if (format->kind != DriverKind::format || format->create == nullptr) continue;
    SCOPED_TRACE(format->name);
    create(*format, 1 << 20);
    const Value value = info(*format);
    qapi::BlockGraphInfo read;
    ASSERT_NO_THROW(read = read_value<qapi::BlockGraphInfo>(value, ValueInput::json))
        << json::print(value);
    EXPECT_EQ(read.format, format->name);
    EXPECT_EQ(read.virtual_size, 1 << 20);
    ASSERT_EQ(read.children.size(), 1U);
    EXPECT_EQ(read.children[0].info.format, "file");
    EXPECT_EQ(to_value(read), value);
  }
}

}  // namespace
}  // namespace vise
