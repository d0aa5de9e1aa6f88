// Options on their way through the graph: each driver refuses what the schema does not declare, and
// the schema declares what the driver table holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>

#include "qapi/qapi-types.h"
#include "temporary_file.h"
#include "util/driver_options.h"
#include "util/keyval.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/event_loop.h"
#include "vise/graph.h"
#include "vise/options.h"

namespace vise {
namespace {

class PlainDriver final : public Driver {
 public:
  std::uint64_t size() const override { return 512; }
  Task<Extent> map(GuestRange range, MapMode) override {
    co_return Extent{.kind = Extent::Kind::zero, .length = range.length};
  }
  Task<void> read(GuestOffset, IoVec) override { co_return; }
  Task<void> write(GuestOffset, ConstIoVec, WriteFlags) override { co_return; }
  Task<void> flush() override { co_return; }
  Task<void> close() override { co_return; }
};

// A driver as one out of tree reads its options.
Task<std::unique_ptr<Driver>> open_by_hand(OpenContext& context) {
  OptionReader reader(context);
  reader.string("colour");
  reader.choice("shape", {"round", "square"});
  reader.integer("weight", -5, 5);
  reader.size("length", 512, 4096);
  reader.boolean("shiny");
  reader.finish();
  co_return std::make_unique<PlainDriver>();
}

const DriverType by_hand_driver = {
    .name = "by-hand", .kind = DriverKind::protocol, .open = open_by_hand};

class QapiDriver : public testing::Test {
 protected:
  QapiDriver() : graph_(context_) { context_.drivers().add(by_hand_driver); }

  /// The error of opening `text`, or nothing.
  std::string error_of(std::string_view text) {
    OpenRequest request;
    request.options = parse_image_options(text).options;
    request.defaults.read_only = true;
    try {
      auto root = context_.loop().run(graph_.open_root(std::move(request)));
      context_.loop().run(root->detach());
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  void create_qcow2() {
    file_.set_content("");
    OpenRequest request;
    request.options.set("driver", "file");
    request.options.set("filename", file_.path());
    std::shared_ptr<Node> node = context_.loop().run(graph_.open(std::move(request)));
    CreateRequest creation{graph_, file_.path(), 1 << 20, {}, node};
    context_.loop().run(context_.drivers().get("qcow2").create(creation));
    creation.file = nullptr;
    context_.loop().run(graph_.release(std::move(node)));
  }

  TemporaryFile file_;
  Context context_;
  Graph graph_;
};

TEST_F(QapiDriver, GoodOptionsOpen) {
  EXPECT_EQ(error_of("driver=null-co,size=1M,latency-ns=0,read-zeroes=on,node-name=n"), "");
  EXPECT_EQ(error_of("driver=raw,offset=4k,size=8k,file.driver=null-co,file.size=64k"), "");
  EXPECT_EQ(error_of("driver=by-hand,colour=red,shape=square,weight=-5,length=4k,shiny=on"), "");
}

TEST_F(QapiDriver, MisspeltOptionsNameTheNearest) {
  const std::array cases = {
      std::pair("driver=null-co,sise=1M", "'sise' is unexpected: did you mean 'size'?"),
      std::pair("driver=null-co,latency=1", "'latency' is unexpected: did you mean 'latency-ns'?"),
      std::pair("driver=file,filenam=x", "'filenam' is unexpected: did you mean 'filename'?"),
      std::pair("driver=null-co,read-onyl=on",
                "'read-onyl' is unexpected: did you mean 'read-only'"),
      std::pair("driver=null-co,cache.drect=on", "'cache.drect' is unexpected: did you mean"),
      std::pair("driver=raw,file.driver=null-co,file.sice=1",
                "'file.sice' is unexpected: did you mean 'file.size'?"),
      std::pair("driver=raw,ofset=1,file.driver=null-co",
                "'ofset' is unexpected: did you mean 'offset'"),
      std::pair("driver=file,filename=x,lokcing=on",
                "'lokcing' is unexpected: did you mean 'locking'?"),
      std::pair("driver=file,filename=x,locking=maybe",
                "'locking' does not accept value 'maybe', only auto, on, off"),
      std::pair("driver=file,filename=x,aio=uring", "only threads, native, io_uring"),
      std::pair("driver=by-hand,color=red", "'color' is unexpected: did you mean 'colour'?"),
      std::pair("driver=by-hand,xyzzy=1",
                "'xyzzy' is unexpected: known here are colour, shape, weight, length, shiny"),
      std::pair("driver=by-hand,shape=oval",
                "'shape' does not accept value 'oval', only round, square"),
      std::pair("driver=by-hand,weight=6", "'weight' expects an integer from -5 to 5"),
      std::pair("driver=by-hand,length=5k", "'length' expects a value from 512 to 4096"),
      std::pair("driver=by-hand,shiny=1", "'shiny' expects 'on' or 'off', not '1'"),
  };
  for (const auto& [text, message] : cases) {
    const std::string error = error_of(text);
    EXPECT_NE(error.find(message), std::string::npos) << text << ": " << error;
  }
}

TEST_F(QapiDriver, FormatsAndFiltersDoTheSame) {
  create_qcow2();
  const std::string image = "driver=qcow2,file.driver=file,file.filename=" + file_.path();
  const std::string filter =
      "driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=" + file_.path();
  EXPECT_EQ(error_of(image + ",lazy-refcounts=on,cache-size=1M"), "");
  EXPECT_EQ(error_of(filter + ",mode=all-writes,level=3"), "");
  const std::array cases = {
      std::pair(image + ",lazy_refcounts=on",
                "'lazy_refcounts' is unexpected: did you mean 'lazy-refcounts'?"),
      std::pair(image + ",bakcing=x", "'bakcing' is unexpected: did you mean 'backing'?"),
      std::pair(image + ",l2-cache-size=x", "Parameter 'l2-cache-size': 'x' is not a size"),
      std::pair(image + ",overlap-check=some", "only none, constant, cached, all"),
      std::pair(filter + ",mdoe=new-writes", "'mdoe' is unexpected: did you mean 'mode'?"),
      std::pair(filter + ",mode=new", "'mode' does not accept value 'new', only new-writes"),
      std::pair(filter + ",file.lazyrefcounts=on",
                "'file.lazyrefcounts' is unexpected: did you mean 'file.lazy-refcounts'?"),
      std::pair(filter + ",file.file.filenam=x",
                "'file.file.filenam' is unexpected: did you mean 'file.file.filename'?"),
  };
  for (const auto& [text, message] : cases) {
    const std::string error = error_of(text);
    EXPECT_NE(error.find(message), std::string::npos) << text << ": " << error;
  }
}

TEST_F(QapiDriver, EveryBuiltInDriverIsInTheSchema) {
  const auto names = names_of(qapi::BlockdevDriver());
  for (const DriverType* type : context_.drivers().types()) {
    if (type == &by_hand_driver) continue;
    EXPECT_NE(std::find(names.begin(), names.end(), type->name), names.end()) << type->name;
  }
}

TEST(NodeOptionNames, AreThoseOfTheSchema) {
  const std::vector<std::string> names = node_option_names();
  EXPECT_NE(std::find(names.begin(), names.end(), "detect-zeroes"), names.end());
  EXPECT_NE(std::find(names.begin(), names.end(), "driver"), names.end());
}

}  // namespace
}  // namespace vise
