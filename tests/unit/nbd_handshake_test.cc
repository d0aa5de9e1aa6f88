// The handshake of the NBD server, byte by byte.
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "nbd_client.h"

namespace vise::test {
namespace {

using nbd::Option;
using nbd::OptionReply;

class NbdHandshake : public NbdServerTest {};

TEST_F(NbdHandshake, AnExportIsChosenByItsName) {
  start();
  NbdClient client = this->client();
  client.greet();
  client.send(option(Option::export_name, Wire().text("disk")));
  const auto answer = client.receive(10);
  ASSERT_EQ(answer.size(), 10u);
  EXPECT_EQ(load_be<std::uint64_t>(answer.data()), 1u << 20);
  EXPECT_EQ(load_be<std::uint16_t>(answer.data() + 8), 0xd6d);
  EXPECT_EQ(client.error_of(client.request(nbd::Command::flush, 0, 0)), 0u);
}

TEST_F(NbdHandshake, OldClientsGetZeroesBehindTheFlags) {
  start();
  NbdClient client = this->client();
  client.greet(1);
  client.send(option(Option::export_name, Wire().text("cd")));
  EXPECT_EQ(client.receive(134).size(), 134u);
  EXPECT_EQ(client.error_of(client.request(nbd::Command::flush, 0, 0)), 0u);
}

TEST_F(NbdHandshake, GoTellsSizeFlagsAndBlockSizes) {
  start();
  NbdClient client = this->client();
  client.greet();
  const auto answers = client.ask(option(Option::go, info_data("disk", {1, 2, 3, 99})));
  ASSERT_EQ(answers.size(), 5u);
  EXPECT_EQ(answers[0].data, Wire().u16(0).u64(1 << 20).u16(0xd6d).bytes());
  EXPECT_EQ(answers[1].data, Wire().u16(1).text("disk").bytes());
  EXPECT_EQ(answers[2].data, Wire().u16(2).text("a disk").bytes());
  EXPECT_EQ(answers[3].data, Wire().u16(3).u32(1).u32(4096).u32(32 << 20).bytes());
  EXPECT_EQ(answers[4].type, OptionReply::ack);
}

TEST_F(NbdHandshake, SizesAreRoundedUpToSectors) {
  start();
  NbdClient client = this->client();
  client.greet();
  const auto answers = client.ask(option(Option::info, info_data("cd")));
  EXPECT_EQ(answers.at(0).data, Wire().u16(0).u64(1024).u16(0x50f).bytes());
}

TEST_F(NbdHandshake, FlagsFollowWhatIsNegotiated) {
  start();
  EXPECT_EQ(client().enter("disk"), 0xd6d);
  EXPECT_EQ(client().enter("disk", NbdClient::Mode::structured), 0xded);
  EXPECT_EQ(client().enter("disk", NbdClient::Mode::extended), 0xded);
  EXPECT_EQ(client().enter("disk", NbdClient::Mode::extended, {"base:allocation"}), 0x1ded);
  EXPECT_EQ(client().enter("cd", NbdClient::Mode::structured), 0x58f);
}

TEST_F(NbdHandshake, OneClientAtATimeIsNotToldOfMultiConn) {
  nbd::ServerOptions options;
  options.max_clients = 1;
  start(options);
  EXPECT_EQ(client().enter("disk"), 0xc6d);
}

TEST_F(NbdHandshake, ListNamesAllExports) {
  start();
  NbdClient client = this->client();
  client.greet();
  const auto answers = client.ask(option(Option::list));
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(answers[0].data, Wire().u32(4).text("diska disk").bytes());
  EXPECT_EQ(answers[1].data, Wire().u32(2).text("cd").bytes());
}

TEST_F(NbdHandshake, AbortIsAcknowledged) {
  start();
  NbdClient client = this->client();
  client.greet();
  EXPECT_EQ(client.ask_type(option(Option::abort, Wire().text("anything"))), OptionReply::ack);
  EXPECT_TRUE(client.is_cut_off());
  EXPECT_EQ(left_, 0);
  EXPECT_EQ(failures_, "");
}

TEST_F(NbdHandshake, AFailedGoCanBeFollowedByAnother) {
  start();
  NbdClient client = this->client();
  client.greet();
  EXPECT_EQ(client.ask_type(option(Option::go, info_data("nothing"))), OptionReply::err_unknown);
  EXPECT_EQ(client.ask_type(option(Option::info, info_data(""))), OptionReply::err_unknown);
  EXPECT_EQ(client.ask_type(option(Option::go, info_data("cd"))), OptionReply::ack);
}

struct Contexts {
  std::vector<std::string> queries;
  std::vector<std::string> listed;
  std::vector<std::string> selected;
};

std::vector<std::string> names_in(const std::vector<OptionAnswer>& answers) {
  std::vector<std::string> names;
  for (const OptionAnswer& answer : answers) {
    if (answer.type == OptionReply::meta_context) names.push_back(answer.text().substr(4));
  }
  return names;
}

TEST_F(NbdHandshake, ContextsAreListedAndSelectedByQuery) {
  const std::string base(nbd::base_allocation);
  const std::string depth(nbd::allocation_depth);
  const Contexts table[] = {
      {{}, {base, depth}, {}},
      {{base}, {base}, {base}},
      {{"base:"}, {base}, {}},
      {{"qemu:"}, {depth}, {}},
      {{depth, base, base}, {base, depth}, {base, depth}},
      {{"Base:allocation", "", "x", "x:y", "base:alloc"}, {}, {}},
      {{std::string(5000, 'x')}, {}, {}},
  };
  start();
  NbdClient client = this->client();
  client.greet();
  ASSERT_EQ(client.ask_type(option(Option::structured_reply)), OptionReply::ack);
  for (const Contexts& row : table) {
    const Wire data = context_data("disk", row.queries);
    const auto listed = client.ask(option(Option::list_meta_context, data));
    EXPECT_EQ(listed.back().type, OptionReply::ack);
    EXPECT_EQ(names_in(listed), row.listed);
    const auto selected = client.ask(option(Option::set_meta_context, data));
    EXPECT_EQ(selected.back().type, OptionReply::ack);
    EXPECT_EQ(names_in(selected), row.selected);
  }
}

TEST_F(NbdHandshake, SelectingContextsNeedsStructuredReplies) {
  start();
  NbdClient client = this->client();
  client.greet();
  const Wire data = context_data("disk", {"base:allocation"});
  EXPECT_EQ(client.ask_type(option(Option::set_meta_context, data)), OptionReply::err_invalid);
  EXPECT_EQ(client.ask_type(option(Option::list_meta_context, data)), OptionReply::ack);
}

TEST_F(NbdHandshake, RepeatedAndContradictingOptionsAreRefused) {
  start();
  NbdClient client = this->client();
  client.greet();
  EXPECT_EQ(client.ask_type(option(Option::structured_reply)), OptionReply::ack);
  EXPECT_EQ(client.ask_type(option(Option::structured_reply)), OptionReply::err_invalid);
  EXPECT_EQ(client.ask_type(option(Option::extended_headers)), OptionReply::ack);
  EXPECT_EQ(client.ask_type(option(Option::extended_headers)), OptionReply::err_invalid);
  EXPECT_EQ(client.ask_type(option(Option::structured_reply)), OptionReply::err_ext_header_reqd);
}

// Each is answered, and the handshake goes on.
struct BadOption {
  const char* what;
  std::uint32_t number;
  Wire data;
  OptionReply expected;
};

TEST_F(NbdHandshake, MalformedOptionsAreAnsweredAndTheHandshakeGoesOn) {
  const auto number = [](Option option) { return static_cast<std::uint32_t>(option); };
  const std::uint32_t info = number(Option::info);
  const std::uint32_t meta = number(Option::list_meta_context);
  const Wire too_long = Wire().fill((64 << 10) + 1, 0);
  std::vector<std::string> many(65, "base:allocation");
  const BadOption table[] = {
      {"unknown", 99, Wire().text("data"), OptionReply::err_unsup},
      {"unknown, long", 99, too_long, OptionReply::err_unsup},
      {"withdrawn", 4, {}, OptionReply::err_unsup},
      {"TLS is off", number(Option::starttls), {}, OptionReply::err_policy},
      {"list with data", number(Option::list), Wire().u8(0), OptionReply::err_invalid},
      {"structured with data", number(Option::structured_reply), Wire().u8(0),
       OptionReply::err_invalid},
      {"extended with data", number(Option::extended_headers), Wire().u8(0),
       OptionReply::err_invalid},
      {"info: nothing", info, {}, OptionReply::err_invalid},
      {"info: half a length", info, Wire().u16(0), OptionReply::err_invalid},
      {"info: no count", info, Wire().u32(4).text("disk"), OptionReply::err_invalid},
      {"info: name past the end", info, Wire().u32(5).text("disk"), OptionReply::err_invalid},
      {"info: name of 4 GiB", info, Wire().u32(UINT32_MAX).text("disk").u16(0),
       OptionReply::err_invalid},
      {"info: count too large", info, Wire().u32(4).text("disk").u16(2).u16(3),
       OptionReply::err_invalid},
      {"info: trailing byte", info, Wire().u32(4).text("disk").u16(0).u8(0),
       OptionReply::err_invalid},
      {"info: name too long", info, info_data(std::string(4097, 'x')), OptionReply::err_invalid},
      {"info: zero byte", info, info_data(std::string_view("di\0sk", 5)), OptionReply::err_invalid},
      {"info: too long", info, too_long, OptionReply::err_too_big},
      {"meta: nothing", meta, {}, OptionReply::err_invalid},
      {"meta: no count", meta, Wire().u32(4).text("disk"), OptionReply::err_invalid},
      {"meta: count too large", meta, Wire().u32(4).text("disk").u32(2).u32(0),
       OptionReply::err_invalid},
      {"meta: 4 billion queries", meta, Wire().u32(4).text("disk").u32(UINT32_MAX).u32(0),
       OptionReply::err_invalid},
      {"meta: query past the end", meta, Wire().u32(4).text("disk").u32(1).u32(9).text("x"),
       OptionReply::err_invalid},
      {"meta: trailing byte", meta, context_data("disk", {"base:"}).u8(0),
       OptionReply::err_invalid},
      {"meta: many queries", meta, context_data("disk", many), OptionReply::err_too_big},
      {"meta: no such export", meta, context_data("x", {}), OptionReply::err_unknown},
  };
  start();
  NbdClient client = this->client();
  client.greet();
  for (const BadOption& row : table) {
    SCOPED_TRACE(row.what);
    const auto answers = client.ask(option(row.number, row.data));
    EXPECT_EQ(answers.back().option, row.number);
    EXPECT_EQ(static_cast<unsigned>(answers.back().type), static_cast<unsigned>(row.expected));
  }
  EXPECT_EQ(client.ask_type(option(Option::go, info_data("disk"))), OptionReply::ack);
}

// Each ends the connection, and that one only.
struct Breach {
  const char* what;
  std::uint32_t flags;
  Wire bytes;
};

TEST_F(NbdHandshake, WhoBreaksTheProtocolIsCutOffAlone) {
  const Wire oversized = Wire().u64(nbd::option_magic).u32(7).u32((32u << 20) + 1);
  const Breach table[] = {
      {"unknown flags", 7, {}},
      {"bad magic", 3, Wire().u64(nbd::option_magic + 1).u32(3).u32(0)},
      {"list without fixed newstyle", 0, option(Option::list)},
      {"no such export", 3, option(Option::export_name, Wire().text("nothing"))},
      {"name with a zero byte", 3, option(Option::export_name, Wire().text("di").u8(0))},
      {"long name", 3, option(Option::export_name, Wire().fill(4097, 'x'))},
      {"option of 32 MiB", 3, oversized},
      {"old choice, new headers", 3,
       option(Option::extended_headers).add(option(Option::export_name, Wire().text("disk")))},
  };
  start();
  NbdClient witness = client();
  witness.enter("disk");
  for (const Breach& row : table) {
    SCOPED_TRACE(row.what);
    failures_.clear();
    NbdClient client = this->client();
    client.greet(row.flags);
    client.send(row.bytes);
    const std::size_t answers =
        row.bytes.bytes().size() > 16 + 5000 ? 0 : client.receive(20).size();
    if (answers == 20) {
      EXPECT_TRUE(client.is_cut_off());
    }
    client.let_others_run();
    EXPECT_NE(failures_, "");
    EXPECT_EQ(witness.error_of(witness.request(nbd::Command::flush, 0, 0)), 0u);
  }
}

TEST_F(NbdHandshake, NobodyNegotiatesWithoutEnd) {
  start();
  NbdClient client = this->client();
  client.greet();
  std::size_t answers = 0;
  for (; answers < 1000; ++answers) {
    client.send(option(99));
    if (client.receive(20 + 14).size() < 20) break;
  }
  EXPECT_EQ(answers, 256u + 2 * 8);
}

TEST_F(NbdHandshake, WhoStallsIsCutOffInTime) {
  nbd::ServerOptions options;
  options.handshake_limit = std::chrono::milliseconds(40);
  start(options);
  NbdClient silent = client();
  NbdClient slow = client();
  NbdClient half_an_option = client();
  NbdClient served = client();
  slow.send(Wire().u8(0));
  half_an_option.greet();
  half_an_option.send(Wire().u64(nbd::option_magic).u32(7).u32(1000).u32(0));
  served.enter("disk");
  EXPECT_EQ(silent.receive(100).size(), 18u);
  EXPECT_EQ(slow.receive(100).size(), 18u);
  EXPECT_TRUE(half_an_option.is_cut_off());
  EXPECT_EQ(served.error_of(served.request(nbd::Command::flush, 0, 0)), 0u);
}

TEST_F(NbdHandshake, AClientBeyondTheLimitWaitsForItsPlace) {
  nbd::ServerOptions options;
  options.max_clients = 1;
  start(options);
  NbdClient first = client();
  NbdClient second = client();
  first.enter("disk");
  second.greet();
  second.send(option(Option::go, info_data("disk")));
  second.let_others_run();
  EXPECT_EQ(server_->clients(), 1u);
  first.hang_up();
  EXPECT_EQ(second.receive(20).size(), 20u);
  EXPECT_EQ(server_->clients(), 1u);
  EXPECT_EQ(left_, 1);
}

TEST_F(NbdHandshake, AnExportWithClientsIsOnlyRemovedByForce) {
  start();
  NbdClient client = this->client();
  client.enter("disk");
  EXPECT_NE(failure(server_->remove("disk", nbd::Server::Removal::safe)), "");
  EXPECT_EQ(client.error_of(client.request(nbd::Command::flush, 0, 0)), 0u);
  run(server_->remove("disk", nbd::Server::Removal::hard));
  EXPECT_TRUE(client.is_cut_off());
  EXPECT_NE(failure(server_->remove("disk", nbd::Server::Removal::hard)), "");
  NbdClient late = this->client();
  late.greet();
  EXPECT_EQ(late.ask_type(option(Option::go, info_data("disk"))), OptionReply::err_unknown);
}

TEST_F(NbdHandshake, BadExportsAreRefused) {
  start();
  const auto add = [&](nbd::ExportOptions options, MemoryDisk& disk) {
    int code = 0;
    failure(server_->add(std::move(options), node_of(disk)), &code);
    return code;
  };
  nbd::ExportOptions twice;
  twice.name = "disk";
  EXPECT_EQ(add(twice, cd_), EEXIST);
  nbd::ExportOptions long_name;
  long_name.name = std::string(4097, 'x');
  EXPECT_EQ(add(long_name, cd_), EINVAL);
  nbd::ExportOptions no_bitmap;
  no_bitmap.name = "new";
  no_bitmap.bitmaps.push_back({"", "b"});
  EXPECT_EQ(add(no_bitmap, cd_), ENOENT);
  EXPECT_EQ(server_->exports().size(), 2u);
}

}  // namespace
}  // namespace vise::test
