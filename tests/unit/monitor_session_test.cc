#include "monitor/session.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "export/export.h"
#include "monitor/commands.h"
#include "util/json.h"
#include "vise/context.h"

namespace vise {
namespace {

class FakeExport final : public Export {
 public:
  explicit FakeExport(Node& node) : node_(node) {}
  Node& node() const override { return node_; }
  bool has_clients() const override { return true; }
  Task<void> stop() override { co_await EventLoop::current().yield(); }

 private:
  Node& node_;
};

Task<std::unique_ptr<Export>> make_fake(Services& services, qapi::BlockExportOptions options) {
  co_return std::make_unique<FakeExport>(get_node(services, options.node_name));
}

constexpr ExportType fake_type = {qapi::BlockExportType::nbd, make_fake};

class QmpSessionTest : public testing::Test {
 protected:
  QmpSessionTest() {
    add_all_commands(services_.commands());
    session_ = std::make_unique<QmpSession>(services_, QmpSession::Layout::one_line,
                                            [this](std::string text) { lines_.push_back(text); });
  }
  ~QmpSessionTest() override {
    session_.reset();
    context_.loop().run(exports_.stop_all(services_));
    context_.loop().run(graph_.close_all());
  }

  /// What was sent since the last call, one message a line.
  std::vector<Value> ask(std::string_view text) {
    session_->feed(text);
    while (session_->has_requests()) context_.loop().run(session_->run());
    return take();
  }
  std::vector<Value> take() {
    std::vector<Value> result;
    for (const std::string& line : std::exchange(lines_, {})) {
      EXPECT_TRUE(line.ends_with("\r\n"));
      result.push_back(json::parse(line));
    }
    return result;
  }
  std::string error_class(std::string_view text) {
    const std::vector<Value> answers = ask(text);
    const Value* error = answers.at(0).as_dict().find("error");
    return error != nullptr ? error->as_dict().find("class")->as_string() : "none";
  }

  Context context_;
  Graph graph_{context_};
  EventBus events_;
  ExportTable exports_{{&fake_type}};
  Services services_{graph_, events_, exports_};
  std::vector<std::string> lines_;
  std::unique_ptr<QmpSession> session_;
};

TEST_F(QmpSessionTest, EveryCommandOfTheSchemaHasAHandler) {
  std::vector<std::string_view> handled = services_.commands().names();
  handled.push_back(qapi::command::qmp_capabilities::name);  // the session's own
  const auto declared = qapi::command_names();
  EXPECT_EQ(std::set<std::string_view>(handled.begin(), handled.end()),
            std::set<std::string_view>(declared.begin(), declared.end()));
}

TEST_F(QmpSessionTest, GreetsAndWaitsForTheNegotiation) {
  EXPECT_TRUE(take().at(0).as_dict().contains("QMP"));
  EXPECT_EQ(error_class(R"({"execute": "quit"})"), "CommandNotFound");
  EXPECT_EQ(error_class(R"({"execute": "qmp_capabilities"})"), "none");
  EXPECT_EQ(error_class(R"({"execute": "qmp_capabilities"})"), "CommandNotFound");
  EXPECT_FALSE(services_.quitting().is_set());
  EXPECT_EQ(error_class(R"({"execute": "quit"})"), "none");
  EXPECT_TRUE(services_.quitting().is_set());
}

TEST_F(QmpSessionTest, EventsComeOnlyAfterTheNegotiation) {
  take();
  events_.emit<qapi::event::BLOCK_EXPORT_DELETED>({.id = "early"});
  EXPECT_TRUE(take().empty());
  ask(R"({"execute": "qmp_capabilities"})");
  events_.emit<qapi::event::BLOCK_EXPORT_DELETED>({.id = "late"});
  const std::vector<Value> messages = take();
  ASSERT_EQ(messages.size(), 1u);
  const Value::Dict& event = messages[0].as_dict();
  EXPECT_EQ(*event.find("event"), Value("BLOCK_EXPORT_DELETED"));
  EXPECT_EQ(*event.find("data")->as_dict().find("id"), Value("late"));
  EXPECT_TRUE(event.find("timestamp")->as_dict().contains("microseconds"));
}

TEST_F(QmpSessionTest, ACorruptImageIsTold) {
  ask(R"({"execute": "qmp_capabilities"})");
  ask(R"({"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n"}})");
  graph_.on_image_corrupted(
      {*graph_.find("n"), "it is", HostRange{HostOffset(4096), 512}, /*fatal=*/true});
  const std::vector<Value> messages = take();
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(*messages[0].as_dict().find("event"), Value("BLOCK_IMAGE_CORRUPTED"));
  const std::string data = json::print_line(*messages[0].as_dict().find("data"));
  EXPECT_EQ(data,
            R"({"device": "", "node-name": "n", "msg": "it is", "offset": 4096, "size": 512, )"
            R"("fatal": true})");
}

TEST_F(QmpSessionTest, TheIdComesBackWithErrorsToo) {
  ask(R"({"execute": "qmp_capabilities"})");
  for (const char* id : {"null", "\"x\"", "7", "{\"a\": [1]}", "1.5"}) {
    for (const char* call : {"\"query-version\"", "\"nope\"", "7"}) {
      const std::string text = std::string("{\"execute\": ") + call + ", \"id\": " + id + "}";
      EXPECT_EQ(*ask(text).at(0).as_dict().find("id"), json::parse(id)) << text;
    }
  }
}

// Cut, changed, nested and swollen messages: each is answered by JSON or by nothing yet, and a byte
// that UTF-8 does not have brings the session back from wherever it is.
TEST_F(QmpSessionTest, BrokenMessagesDoNotKeepTheNextOneFromItsAnswer) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  ask(R"({"execute": "qmp_capabilities"})");
  const std::array<std::string, 4> whole = {
      R"({"execute": "query-version", "id": {"a": [null, 1.5e3, "\u00e9\ud83d\ude00"]}})",
      R"({"execute": "blockdev-add", "arguments": {"driver": "null-co", "size": 512}})",
      R"({"execute": "transaction", "arguments": {"actions": [{"type": "abort", "data": {}}]}})",
      R"({"execute": "block-dirty-bitmap-add", "arguments": {"node": "n", "name": "b"}})"};
  for (int round = 0; round < 300; ++round) {
    std::string text = whole[random() % whole.size()];
    for (unsigned i = random() % 6; i > 0; --i) {
      const std::size_t at = random() % text.size();
      switch (random() % 6) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 8);
          break;
        case 2:
          text.resize(at);
          break;
        case 3:
          text.insert(at, random() % 2000, "[{"[random() % 2]);
          break;
        case 4:
          text.insert(at, random() % 50000, "x\\9\""[random() % 4]);
          break;
        default:
          text.insert(at, whole[random() % whole.size()].substr(random() % 40));
      }
      if (text.empty()) text = "{";
    }
    SCOPED_TRACE(text.substr(0, 300));
    ask(text);  // take() has parsed what came back
    const std::vector<Value> answers = ask("\xff{\"execute\": \"query-version\", \"id\": 7}");
    ASSERT_FALSE(answers.empty());
    const Value* id = answers.back().as_dict().find("id");
    ASSERT_TRUE(id != nullptr && *id == Value(7));
    ASSERT_TRUE(answers.back().as_dict().contains("return"));
  }
}

TEST_F(QmpSessionTest, ExportsAreAddedToldAndRemoved) {
  ask(R"({"execute": "qmp_capabilities"})");
  ask(R"({"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n",
          "read-only": true}})");
  const std::string add = R"({"execute": "block-export-add", "arguments": {"type": "nbd", )";
  EXPECT_EQ(error_class(add + R"("id": "e", "node-name": "n", "writable": true}})"),
            "GenericError");
  EXPECT_EQ(error_class(add + R"("id": "1", "node-name": "n"}})"), "GenericError");
  EXPECT_EQ(error_class(add + R"("id": "e", "node-name": "n"}})"), "none");
  EXPECT_EQ(error_class(add + R"("id": "e", "node-name": "n"}})"), "GenericError");
  const std::vector<Value> listed = ask(R"({"execute": "query-block-exports"})");
  EXPECT_EQ(json::print_line(*listed.at(0).as_dict().find("return")),
            R"([{"id": "e", "type": "nbd", "node-name": "n", "shutting-down": false}])");
  const std::string remove = R"({"execute": "block-export-del", "arguments": {"id": "e")";
  EXPECT_EQ(error_class(remove + "}}"), "GenericError");  // it has clients
  EXPECT_EQ(error_class(remove + R"(, "mode": "hard"}})"), "none");
  context_.loop().run(context_.loop().sleep(std::chrono::nanoseconds(0)));
  EXPECT_TRUE(exports_.entries().empty());
  EXPECT_EQ(take().size(), 1u);  // BLOCK_EXPORT_DELETED
}

}  // namespace
}  // namespace vise
