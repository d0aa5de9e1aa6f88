// Requests to the NBD server, in all forms of replies, and clients that lie, stall and vanish.
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <string>

#include "graph/bitmaps.h"
#include "nbd_client.h"

namespace vise::test {
namespace {

using nbd::Command;
using Mode = NbdClient::Mode;

constexpr std::uint32_t eperm = 1, eio = 5, einval = 22, enospc = 28, enotsup = 95;

class NbdTransmission : public NbdServerTest {
 protected:
  std::vector<std::byte> bytes_at(std::size_t offset, std::size_t length) const {
    return {disk_.bytes.begin() + static_cast<std::ptrdiff_t>(offset),
            disk_.bytes.begin() + static_cast<std::ptrdiff_t>(offset + length)};
  }
};

class NbdInMode : public NbdTransmission, public ::testing::WithParamInterface<Mode> {};
std::string name_of(const ::testing::TestParamInfo<Mode>& tested) {
  if (tested.param == Mode::simple) return "Simple";
  return tested.param == Mode::structured ? "Structured" : "Extended";
}
INSTANTIATE_TEST_SUITE_P(Modes, NbdInMode,
                         ::testing::Values(Mode::simple, Mode::structured, Mode::extended),
                         name_of);

TEST_P(NbdInMode, ReadsGiveWhatTheDiskHolds) {
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  const auto chunks = client.call(client.request(Command::read, 1000, 5000), 5000);
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].cookie, 77u);
  const std::vector<std::byte> expected = bytes_at(1000, 5000);
  if (GetParam() == Mode::simple) {
    EXPECT_EQ(chunks[0].data, expected);
    return;
  }
  EXPECT_EQ(chunks[0].type, nbd::Chunk::offset_data);
  Wire data;
  data.u64(1000);
  data.bytes().insert(data.bytes().end(), expected.begin(), expected.end());
  EXPECT_EQ(chunks[0].data, data.bytes());
  EXPECT_EQ(chunks[0].offset, GetParam() == Mode::extended ? 1000u : 0u);
}

TEST_P(NbdInMode, WritesReachTheDisk) {
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  EXPECT_EQ(client.error_of(client.request(Command::write, 512, 1024).fill(1024, 0xaa)), 0u);
  EXPECT_EQ(bytes_at(512, 1024), Wire().fill(1024, 0xaa).bytes());
  EXPECT_EQ(disk_.bytes[511], std::byte{1});
  EXPECT_EQ(disk_.flushes, 0u);
  const unsigned fua = nbd::command_flag::fua;
  EXPECT_EQ(client.error_of(client.request(Command::write, 0, 512, fua).fill(512, 0xbb)), 0u);
  EXPECT_GE(disk_.flushes, 1u);
}

TEST_P(NbdInMode, OtherCommandsDoWhatTheySay) {
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  EXPECT_EQ(client.error_of(client.request(Command::write_zeroes, 4096, 8192)), 0u);
  EXPECT_EQ(disk_.zeroes, 1u);
  EXPECT_EQ(client.error_of(client.request(Command::trim, 65536, 4096)), 0u);
  EXPECT_EQ(disk_.discards, 1u);
  EXPECT_EQ(client.error_of(client.request(Command::cache, 0, 65536)), 0u);
  EXPECT_GE(disk_.reads, 1u);
  EXPECT_EQ(client.error_of(client.request(Command::flush, 0, 0)), 0u);
  EXPECT_EQ(disk_.flushes, 1u);
  EXPECT_EQ(client.error_of(client.request(Command::trim, 0, 4096, nbd::command_flag::fua)), 0u);
  EXPECT_EQ(disk_.flushes, 2u);
  for (const Command command :
       {Command::read, Command::write, Command::trim, Command::cache, Command::write_zeroes}) {
    EXPECT_EQ(client.error_of(client.request(command, 4096, 0)), 0u);
  }
  client.send(client.request(Command::disconnect, 0, 0));
  EXPECT_TRUE(client.is_cut_off());
  client.let_others_run();
  EXPECT_EQ(left_, 1);
  EXPECT_EQ(failures_, "");
}

struct BadRequest {
  const char* what;
  Command command;
  std::uint64_t offset, length;
  unsigned flags;
  std::size_t payload;
  std::uint32_t error;
};

TEST_P(NbdInMode, BadRequestsAreRefusedAndTheConnectionGoesOn) {
  constexpr std::uint64_t size = 1 << 20;
  constexpr std::uint64_t last = UINT64_MAX;
  using namespace nbd::command_flag;
  const BadRequest table[] = {
      {"read past the end", Command::read, size - 511, 512, 0, 0, einval},
      {"read far behind", Command::read, last, 1, 0, 0, einval},
      {"read that wraps", Command::read, last - 100, 512, 0, 0, einval},
      {"read of too much", Command::read, 0, (32 << 20) + 1, 0, 0, einval},
      {"write past the end", Command::write, size - 511, 512, 0, 512, enospc},
      {"write that wraps", Command::write, last, 512, 0, 512, enospc},
      {"zeroes past the end", Command::write_zeroes, size, 1, 0, 0, enospc},
      {"zeroes of 4 GiB", Command::write_zeroes, 0, UINT32_MAX, 0, 0, enospc},
      {"trim past the end", Command::trim, size, 1, 0, 0, einval},
      {"cache past the end", Command::cache, size, 1, 0, 0, einval},
      {"status without contexts", Command::block_status, 0, 512, 0, 0, einval},
      {"read, no hole", Command::read, 0, 512, no_hole, 0, einval},
      {"write, fast zero", Command::write, 0, 512, fast_zero, 512, einval},
      {"zeroes, df", Command::write_zeroes, 0, 512, df, 0, einval},
      {"flush, req one", Command::flush, 0, 0, req_one, 0, einval},
      {"unknown flag", Command::read, 0, 512, 1 << 9, 0, einval},
      {"resize", Command{8}, 0, 512, 0, 0, einval},
      {"unknown command", Command{77}, 0, 512, 0, 0, einval},
  };
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  const std::vector<std::byte> before = disk_.bytes;
  for (const BadRequest& row : table) {
    SCOPED_TRACE(row.what);
    Wire wire = client.request(row.command, row.offset, row.length, row.flags);
    const auto chunks = client.call(wire.fill(row.payload, 0xcc));
    EXPECT_EQ(chunks.size(), 1u);
    EXPECT_EQ(chunks.back().error, row.error);
    EXPECT_EQ(chunks.back().cookie, 77u);
  }
  EXPECT_EQ(disk_.bytes, before);
  EXPECT_EQ(client.error_of(client.request(Command::read, 0, 512), 512), 0u);
  EXPECT_EQ(failures_, "");
}

TEST_P(NbdInMode, AReadOnlyExportTakesNothing) {
  start();
  NbdClient client = this->client();
  client.enter("cd", GetParam());
  EXPECT_EQ(client.error_of(client.request(Command::write, 0, 512).fill(512, 1)), eperm);
  EXPECT_EQ(client.error_of(client.request(Command::trim, 0, 512)), eperm);
  EXPECT_EQ(client.error_of(client.request(Command::write_zeroes, 0, 512)), eperm);
  EXPECT_EQ(client.error_of(client.request(Command::flush, 0, 0)), 0u);
  EXPECT_EQ(cd_.bytes, Wire().fill(1000, 7).bytes());
}

TEST_P(NbdInMode, ErrorsOfTheDiskAreTold) {
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  int code = EIO;
  disk_.on_request = [&](const char*, GuestRange) { throw Error(code, "/secret/path failed"); };
  EXPECT_EQ(client.error_of(client.request(Command::read, 0, 512), 512), eio);
  EXPECT_EQ(client.error_of(client.request(Command::flush, 0, 0)), eio);
  code = EDQUOT;
  const auto chunks = client.call(client.request(Command::write, 0, 512).fill(512, 1));
  EXPECT_EQ(chunks.back().error, enospc);
  const auto& text = chunks.back().data;
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(text.data()), text.size()).find("secret"),
            std::string::npos);
  disk_.on_request = nullptr;
  EXPECT_EQ(client.error_of(client.request(Command::read, 0, 512), 512), 0u);
}

TEST_P(NbdInMode, FastZeroesThatAreNotFastChangeNothing) {
  disk_.limits.can_zero = false;
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  const std::vector<std::byte> before = disk_.bytes;
  const unsigned fast = nbd::command_flag::fast_zero;
  EXPECT_EQ(client.error_of(client.request(Command::write_zeroes, 0, 4096, fast)), enotsup);
  EXPECT_EQ(disk_.bytes, before);
  EXPECT_EQ(client.error_of(client.request(Command::write_zeroes, 0, 4096)), 0u);
  EXPECT_EQ(bytes_at(0, 4096), Wire().fill(4096, 0).bytes());
}

TEST_P(NbdInMode, APayloadThatIsTooLargeIsReadAndRefused) {
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  const std::size_t length = (32 << 20) + 512;
  EXPECT_EQ(client.error_of(client.request(Command::write, 0, length).fill(length, 1)), einval);
  EXPECT_EQ(client.error_of(client.request(Command::flush, 0, 0)), 0u);
  client.send(client.request(Command::write, 0, (64u << 20) + 1));
  EXPECT_TRUE(client.is_cut_off());
}

TEST_P(NbdInMode, AWriteThatIsCutShortChangesNothing) {
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  client.send(client.request(Command::write, 0, 4096).fill(4095, 0xee));
  client.let_others_run();
  client.hang_up();
  for (int i = 0; i < 50 && left_ == 0; ++i) run(context_.loop().yield());
  EXPECT_EQ(disk_.writes, 0u);
  EXPECT_EQ(disk_.bytes[0], std::byte{1});
  EXPECT_NE(failures_, "");
}

TEST_P(NbdInMode, BadMagicCutsOff) {
  start();
  NbdClient client = this->client();
  client.enter("disk", GetParam());
  client.send(Wire().u32(0x12345678).fill(28, 0));
  EXPECT_TRUE(client.is_cut_off());
  EXPECT_NE(failures_.find("0x12345678"), std::string::npos);
}

TEST_F(NbdTransmission, ThePaddingOfTheLastSectorReadsAsZeroesAndTakesNothingElse) {
  start();
  disk_.bytes.resize(1000);
  NbdClient client = this->client();
  client.enter("disk");
  auto chunk = client.call(client.request(Command::read, 512, 512), 512).back();
  EXPECT_EQ(std::vector(chunk.data.begin() + 488, chunk.data.end()), Wire().fill(24, 0).bytes());
  EXPECT_EQ(chunk.data[487], std::byte{2});
  EXPECT_EQ(client.error_of(client.request(Command::write, 512, 512).fill(512, 3)), enospc);
  EXPECT_EQ(disk_.bytes[512], std::byte{2});
  EXPECT_EQ(client.error_of(client.request(Command::write, 512, 512).fill(488, 3).fill(24, 0)), 0u);
  EXPECT_EQ(disk_.bytes[999], std::byte{3});
  EXPECT_EQ(client.error_of(client.request(Command::write_zeroes, 0, 1024)), 0u);
  EXPECT_EQ(client.error_of(client.request(Command::trim, 0, 1024)), 0u);
  EXPECT_EQ(client.error_of(client.request(Command::cache, 512, 512)), 0u);
}

TEST_F(NbdTransmission, HolesAreNotSentAsData) {
  disk_.limits.cluster_size = 65536;
  disk_.allocated.assign(16, false);
  disk_.allocated[1] = true;
  start();
  NbdClient client = this->client();
  client.enter("disk", Mode::structured);
  const auto chunks = client.call(client.request(Command::read, 0, 3 * 65536));
  ASSERT_EQ(chunks.size(), 3u);
  EXPECT_EQ(chunks[0].type, nbd::Chunk::offset_hole);
  EXPECT_EQ(chunks[0].data, Wire().u64(0).u32(65536).bytes());
  EXPECT_EQ(chunks[1].type, nbd::Chunk::offset_data);
  EXPECT_EQ(chunks[1].data.size(), 65536u + 8);
  EXPECT_EQ(chunks[2].data, Wire().u64(2 * 65536).u32(65536).bytes());
  const auto df = client.call(client.request(Command::read, 0, 65536, nbd::command_flag::df));
  ASSERT_EQ(df.size(), 1u);
  EXPECT_EQ(df[0].type, nbd::Chunk::offset_data);
}

TEST_F(NbdTransmission, BlockStatusTellsAllocationDepthAndBitmaps) {
  disk_.limits.cluster_size = 65536;
  disk_.allocated.assign(16, false);
  disk_.allocated[2] = disk_.allocated[3] = true;
  start();
  const std::shared_ptr<Node> node = node_of(disk_);
  NodeBitmap& bitmap = add_bitmap(*node, {.name = "a b", .granularity = 65536});
  bitmap.bits.set({GuestOffset(65536), 1});
  nbd::ExportOptions with_bitmap;
  with_bitmap.name = "b";
  with_bitmap.writable = true;
  with_bitmap.bitmaps.push_back({"", "a b"});
  run(server_->add(std::move(with_bitmap), node));
  EXPECT_NE(failure(remove_bitmap(*node, "a b")), "");  // in use

  NbdClient client = this->client();
  client.enter("disk", Mode::structured, {"base:allocation", "qemu:allocation-depth"});
  auto chunks = client.call(client.request(Command::block_status, 65536, 4 * 65536));
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].data,
            Wire().u32(0).u32(65536).u32(3).u32(2 * 65536).u32(0).u32(65536).u32(3).bytes());
  EXPECT_EQ(chunks[1].data,
            Wire().u32(1).u32(65536).u32(0).u32(2 * 65536).u32(1).u32(65536).u32(0).bytes());
  chunks = client.call(
      client.request(Command::block_status, 65536, 4 * 65536, nbd::command_flag::req_one));
  EXPECT_EQ(chunks.at(0).data, Wire().u32(0).u32(65536).u32(3).bytes());
  EXPECT_EQ(client.error_of(client.request(Command::block_status, 0, 0)), einval);

  NbdClient other = this->client();
  other.enter("b", Mode::extended, {"qemu:dirty-bitmap:a b", "base:allocation"});
  const Wire payload = Wire().u64(1 << 20).u32(2);
  chunks = other.call(
      other.request(Command::block_status, 0, 12, nbd::command_flag::payload_length).add(payload));
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0].type, nbd::Chunk::block_status_ext);
  EXPECT_EQ(
      chunks[0].data,
      Wire().u32(2).u32(3).u64(65536).u64(0).u64(65536).u64(1).u64(14 * 65536).u64(0).bytes());
  const Wire bad[] = {Wire(),
                      Wire().u64(512),
                      Wire().u64(512).u32(9),
                      Wire().u64(512).u32(2).u32(2),
                      Wire().u64(512).u32(2).u8(0),
                      Wire().u64(1 << 21).u32(2),
                      Wire().u64(0).u32(2)};
  for (const Wire& data : bad) {
    Wire wire = other.request(Command::block_status, 0, data.bytes().size(),
                              nbd::command_flag::payload_length);
    EXPECT_EQ(other.error_of(wire.add(data)), einval);
  }
  run(server_->remove("b", nbd::Server::Removal::hard));
  run(remove_bitmap(*node, "a b"));
}

TEST_F(NbdTransmission, ContextsOfAnotherExportAreNotActive) {
  start();
  NbdClient client = this->client();
  client.greet();
  client.ask(option(nbd::Option::structured_reply));
  client.ask(option(nbd::Option::set_meta_context, context_data("cd", {"base:allocation"})));
  client.ask(option(nbd::Option::go, info_data("disk")));
  client.send(Wire());
  EXPECT_EQ(client.error_of(client.request(Command::block_status, 0, 512)), einval);
}

TEST_F(NbdTransmission, ExtendedPayloadsWhereNoneBelongAreReadAndRefused) {
  start();
  NbdClient client = this->client();
  client.enter("disk", Mode::extended);
  const unsigned with_payload = nbd::command_flag::payload_length;
  for (const Command command : {Command::read, Command::trim, Command{42}}) {
    EXPECT_EQ(client.error_of(client.request(command, 0, 512, with_payload).fill(512, 0)), einval);
  }
  EXPECT_EQ(client.error_of(client.request(Command::write, 0, 512, with_payload).fill(512, 9)), 0u);
  EXPECT_EQ(disk_.bytes[511], std::byte{9});
  EXPECT_EQ(client.error_of(client.request(Command::write_zeroes, 0, UINT64_MAX)), enospc);
}

TEST_F(NbdTransmission, FlushesAtTheSameTimeShareTheWork) {
  start();
  disk_.hold = true;
  NbdClient client = this->client();
  client.enter("disk");
  for (int i = 0; i < 50; ++i) client.send(client.request(Command::flush, 0, 0));
  client.let_others_run();
  EXPECT_EQ(disk_.flushes, 1u);
  disk_.hold = false;
  disk_.held.wake_all();
  for (int i = 0; i < 50; ++i) EXPECT_EQ(client.chunk().error, 0u);
  EXPECT_LE(disk_.flushes, 2u);
}

TEST_F(NbdTransmission, AClientThatNeverReadsTakesABoundedPartOfMemoryAndOnlyItsOwnTime) {
  nbd::ServerOptions options;
  options.stall_limit = std::chrono::milliseconds(60);
  start(options);
  NbdClient greedy = client();
  NbdClient other = client();
  greedy.enter("disk");
  other.enter("disk");
  Wire requests;
  for (int i = 0; i < 1000; ++i) requests.add(greedy.request(Command::read, 0, 1 << 20));
  greedy.send(requests);
  greedy.let_others_run();
  EXPECT_LE(disk_.reads, 70u);  // 64 MiB, and what the socket took
  EXPECT_EQ(other.error_of(other.request(Command::read, 0, 512), 512), 0u);
  for (int i = 0; i < 100 && left_ == 0; ++i) {
    run(context_.loop().sleep(std::chrono::milliseconds(10)));
  }
  EXPECT_EQ(left_, 1);
  EXPECT_NE(failures_.find("in the middle of a message"), std::string::npos);
  EXPECT_EQ(other.error_of(other.request(Command::read, 0, 512), 512), 0u);
}

TEST_F(NbdTransmission, AStalledPayloadIsGivenUpAnIdleClientIsNot) {
  nbd::ServerOptions options;
  options.stall_limit = std::chrono::milliseconds(40);
  start(options);
  NbdClient stalled = client();
  NbdClient idle = client();
  stalled.enter("disk");
  idle.enter("disk");
  stalled.send(stalled.request(Command::write, 0, 4096).fill(10, 1));
  EXPECT_TRUE(stalled.is_cut_off());
  EXPECT_EQ(disk_.writes, 0u);
  EXPECT_EQ(idle.error_of(idle.request(Command::flush, 0, 0)), 0u);
}

TEST_F(NbdTransmission, ClosingWithRequestsInFlightWaitsForThem) {
  start();
  disk_.hold = true;
  NbdClient client = this->client();
  client.enter("disk");
  client.send(client.request(Command::write, 0, 512).fill(512, 5));
  client.let_others_run();
  bool closed = false;
  TaskScope closing;
  closing.spawn([](nbd::Server& server, bool& done) -> Task<void> {
    co_await server.close();
    done = true;
  }(*server_, closed));
  client.let_others_run();
  EXPECT_FALSE(closed);
  disk_.hold = false;
  disk_.held.wake_all();
  run(closing.join());
  EXPECT_TRUE(closed);
  EXPECT_EQ(disk_.bytes[0], std::byte{5});
}

// Damaged conversations: nothing crashes, nobody else notices, and the server can always be closed.
TEST_F(NbdTransmission, NoiseCostsOnlyItsSender) {
  const char* text = std::getenv("VISE_TEST_SEED");
  const unsigned seed = text != nullptr ? static_cast<unsigned>(std::atoi(text)) : 20u;
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  const auto below = [&](std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  start();
  NbdClient witness = client();
  witness.enter("disk", Mode::structured);
  for (int round = 0; round < 200; ++round) {
    NbdClient client = this->client();
    Wire wire = Wire().u32(3);
    const bool extended = below(2) == 0;
    wire.add(option(extended ? nbd::Option::extended_headers : nbd::Option::structured_reply));
    wire.add(option(nbd::Option::list)).add(option(nbd::Option::info, info_data("disk", {3})));
    wire.add(option(nbd::Option::set_meta_context, context_data("disk", {"base:allocation"})));
    wire.add(option(nbd::Option::go, info_data("disk", {1, 3})));
    for (int i = 0; i < 8; ++i) {
      const Command command{static_cast<std::uint16_t>(below(9))};
      if (command == Command::disconnect) continue;
      const std::size_t length = below(3) * 512;
      Wire one = Wire().u32(extended ? nbd::extended_request_magic : nbd::request_magic);
      one.u16(static_cast<std::uint16_t>(below(64))).u16(static_cast<std::uint16_t>(command));
      one.u64(i).u64(below(1 << 20));
      if (extended)
        one.u64(length);
      else
        one.u32(static_cast<std::uint32_t>(length));
      if (command == Command::write) one.fill(length, 0x5a);
      wire.add(one);
    }
    // Half of the time the framing stays whole, and the requests get through.
    const std::size_t damages = below(2) * below(4);
    for (std::size_t i = 0; i < damages; ++i) {
      auto& bytes = wire.bytes();
      const std::size_t at = below(bytes.size());
      switch (below(3)) {
        case 0:
          bytes[at] = std::byte(below(256));
          break;
        case 1:
          bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at));
          break;
        default:
          bytes.resize(at + 1);
      }
    }
    client.send(wire);
    client.let_others_run();
    client.hang_up();
    if (round % 16 == 0) {
      EXPECT_EQ(witness.error_of(witness.request(Command::flush, 0, 0)), 0u);
    }
  }
  EXPECT_EQ(witness.error_of(witness.request(Command::flush, 0, 0)), 0u);
}

}  // namespace
}  // namespace vise::test
