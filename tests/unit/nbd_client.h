// A client of the NBD server for tests: says whatever bytes it is told to over a socket pair, in
// the thread and on the loop of the server.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "export/nbd/protocol.h"
#include "export/nbd/server.h"
#include "export/nbd/stream.h"
#include "memory_driver.h"
#include "util/fd_watch.h"
#include "vise/util/endian.h"

namespace vise::test {

/// Bytes as they go over the wire.
class Wire {
 public:
  Wire& u8(std::uint8_t v) { return number(v); }
  Wire& u16(std::uint16_t v) { return number(v); }
  Wire& u32(std::uint32_t v) { return number(v); }
  Wire& u64(std::uint64_t v) { return number(v); }
  Wire& text(std::string_view v) {
    for (const char c : v) bytes_.push_back(std::byte(c));
    return *this;
  }
  Wire& add(const Wire& other) {
    bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
    return *this;
  }
  Wire& fill(std::size_t count, std::uint8_t value) {
    bytes_.insert(bytes_.end(), count, std::byte(value));
    return *this;
  }
  std::vector<std::byte>& bytes() { return bytes_; }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  template <class T>
  Wire& number(T v) {
    bytes_.resize(bytes_.size() + sizeof v);
    store_be(bytes_.data() + bytes_.size() - sizeof v, v);
    return *this;
  }
  std::vector<std::byte> bytes_;
};

inline Wire option(std::uint32_t number, const Wire& data = {}) {
  Wire wire;
  wire.u64(nbd::option_magic).u32(number).u32(static_cast<std::uint32_t>(data.bytes().size()));
  return wire.add(data);
}
inline Wire option(nbd::Option number, const Wire& data = {}) {
  return option(static_cast<std::uint32_t>(number), data);
}

/// Data of INFO and GO.
inline Wire info_data(std::string_view name, std::vector<std::uint16_t> types = {}) {
  Wire wire;
  wire.u32(static_cast<std::uint32_t>(name.size())).text(name);
  wire.u16(static_cast<std::uint16_t>(types.size()));
  for (const std::uint16_t type : types) wire.u16(type);
  return wire;
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
inline Wire context_data(std::string_view name, std::vector<std::string> queries) {
  Wire wire;
  wire.u32(static_cast<std::uint32_t>(name.size())).text(name);
  wire.u32(static_cast<std::uint32_t>(queries.size()));
  for (const std::string& query : queries) {
    wire.u32(static_cast<std::uint32_t>(query.size())).text(query);
  }
  return wire;
}

struct OptionAnswer {
  std::uint32_t option = 0;
  nbd::OptionReply type{};
  std::vector<std::byte> data;
  std::string text() const { return {reinterpret_cast<const char*>(data.data()), data.size()}; }
};

/// One chunk, or a simple reply as the only one.
struct Chunk {
  bool simple = false;
  bool done = true;
  nbd::Chunk type{};
  std::uint64_t cookie = 0;
  std::uint64_t offset = 0;  // with extended headers
  std::uint32_t error = 0;   // simple replies and error chunks
  std::vector<std::byte> data;
};

class NbdClient {
 public:
  NbdClient(EventLoop& loop, nbd::Server& server) : loop_(loop) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
      std::abort();
    stream_.emplace(FileDescriptor(pair[0]));
    server.serve(FileDescriptor(pair[1]));
    // Nothing here takes long: what hangs fails.
    timer_.start(std::chrono::seconds(20), [this] {
      if (stream_) stream_->shut_down();
    });
  }

  void send(const Wire& wire) { loop_.run(send_all(wire.bytes())); }

  /// Fewer bytes at the end of the stream.
  std::vector<std::byte> receive(std::size_t count) { return loop_.run(receive_all(count)); }
  bool is_cut_off() { return receive(1).empty(); }
  void hang_up() { stream_.reset(); }
  void let_others_run() {
    for (int i = 0; i < 20; ++i) loop_.run(loop_.yield());
  }

  /// Takes the greeting and sends flags.
  void greet(std::uint32_t flags = 3) {
    const std::vector<std::byte> greeting = receive(18);
    ASSERT_EQ(greeting.size(), 18u);
    BigEndianReader reader(greeting);
    EXPECT_EQ(reader.u64(), nbd::greeting_magic);
    EXPECT_EQ(reader.u64(), nbd::option_magic);
    EXPECT_EQ(reader.u16(), 3);
    send(Wire().u32(flags));
  }

  OptionAnswer answer() {
    const std::vector<std::byte> head = receive(20);
    if (head.size() != 20) {
      ADD_FAILURE() << "the server has hung up";
      return {};
    }
    BigEndianReader reader(head);
    EXPECT_EQ(reader.u64(), nbd::option_reply_magic);
    OptionAnswer result;
    result.option = reader.u32();
    result.type = nbd::OptionReply{reader.u32()};
    result.data = receive(reader.u32());
    return result;
  }
  /// All answers to one option, the final one last.
  std::vector<OptionAnswer> ask(const Wire& wire) {
    send(wire);
    std::vector<OptionAnswer> answers;
    do {
      answers.push_back(answer());
    } while (answers.back().type == nbd::OptionReply::server ||
             answers.back().type == nbd::OptionReply::info ||
             answers.back().type == nbd::OptionReply::meta_context);
    return answers;
  }
  nbd::OptionReply ask_type(const Wire& wire) { return ask(wire).back().type; }

  enum class Mode { simple, structured, extended };
  /// Greets, negotiates and chooses an export. Gives its flags.
  std::uint16_t enter(std::string_view name, Mode mode = Mode::simple,
                      std::vector<std::string> contexts = {}) {
    greet();
    mode_ = mode;
    if (mode == Mode::structured) {
      EXPECT_EQ(ask_type(option(nbd::Option::structured_reply)), nbd::OptionReply::ack);
    } else if (mode == Mode::extended) {
      EXPECT_EQ(ask_type(option(nbd::Option::extended_headers)), nbd::OptionReply::ack);
    }
    if (!contexts.empty()) {
      EXPECT_EQ(ask_type(option(nbd::Option::set_meta_context, context_data(name, contexts))),
                nbd::OptionReply::ack);
    }
    const std::vector<OptionAnswer> answers = ask(option(nbd::Option::go, info_data(name)));
    EXPECT_EQ(answers.back().type, nbd::OptionReply::ack);
    return load_be<std::uint16_t>(answers.at(0).data.data() + 10);
  }

  Wire request(nbd::Command command, std::uint64_t offset, std::uint64_t length, unsigned flags = 0,
               std::uint64_t cookie = 77) const {
    Wire wire;
    wire.u32(mode_ == Mode::extended ? nbd::extended_request_magic : nbd::request_magic);
    wire.u16(static_cast<std::uint16_t>(flags)).u16(static_cast<std::uint16_t>(command));
    wire.u64(cookie).u64(offset);
    if (mode_ == Mode::extended)
      wire.u64(length);
    else
      wire.u32(static_cast<std::uint32_t>(length));
    return wire;
  }

  /// `read_length`: bytes behind a simple reply without error.
  Chunk chunk(std::size_t read_length = 0) {
    Chunk result;
    const std::vector<std::byte> magic = receive(4);
    if (magic.size() != 4) {
      ADD_FAILURE() << "the server has hung up";
      return result;
    }
    switch (load_be<std::uint32_t>(magic.data())) {
      case nbd::simple_reply_magic: {
        const std::vector<std::byte> head = receive(12);
        result.simple = true;
        result.error = load_be<std::uint32_t>(head.data());
        result.cookie = load_be<std::uint64_t>(head.data() + 4);
        if (result.error == 0) result.data = receive(read_length);
        return result;
      }
      case nbd::structured_reply_magic:
      case nbd::extended_reply_magic:
        break;
      default:
        ADD_FAILURE() << "unknown magic number of a reply";
        return result;
    }
    const bool extended = load_be<std::uint32_t>(magic.data()) == nbd::extended_reply_magic;
    EXPECT_EQ(extended, mode_ == Mode::extended);
    const std::vector<std::byte> head = receive(extended ? 28 : 16);
    BigEndianReader reader(head);
    result.done = (reader.u16() & nbd::chunk_done) != 0;
    result.type = nbd::Chunk{reader.u16()};
    result.cookie = reader.u64();
    if (extended) result.offset = reader.u64();
    result.data = receive(extended ? reader.u64() : reader.u32());
    if (result.type == nbd::Chunk::error) result.error = load_be<std::uint32_t>(result.data.data());
    return result;
  }
  /// Sends a request and gives all chunks of its answer.
  std::vector<Chunk> call(const Wire& wire, std::size_t read_length = 0) {
    send(wire);
    std::vector<Chunk> chunks;
    do {
      chunks.push_back(chunk(read_length));
    } while (!chunks.back().done);
    return chunks;
  }
  /// The error of a request; 0: it succeeded.
  std::uint32_t error_of(const Wire& wire, std::size_t read_length = 0) {
    return call(wire, read_length).back().error;
  }

 private:
  Task<void> send_all(std::vector<std::byte> bytes) {
    iovec part{bytes.data(), bytes.size()};
    try {
      co_await stream_->send(std::span(&part, 1));
    } catch (const Error&) {
      // Cut off: what is received next will tell.
    }
  }
  Task<std::vector<std::byte>> receive_all(std::size_t count) {
    std::vector<std::byte> bytes(count);
    std::size_t there = 0;
    while (there < count) {
      std::size_t more = 0;
      try {
        more = co_await stream_->receive(std::span(bytes).subspan(there));
      } catch (const Error&) {
        more = 0;
      }
      if (more == 0) break;
      there += more;
    }
    bytes.resize(there);
    co_return bytes;
  }

  EventLoop& loop_;
  std::optional<nbd::Stream> stream_;
  Timer timer_;
  Mode mode_ = Mode::simple;
};

/// A server with one writable export "disk" of 1 MiB, and a read-only one, "cd".
class NbdServerTest : public GraphTest {
 protected:
  NbdServerTest() {
    disk_.bytes.resize(1 << 20);
    disk_.limits.can_zero = true;
    disk_.limits.can_discard = true;
    for (std::size_t i = 0; i < disk_.bytes.size(); ++i) disk_.bytes[i] = std::byte(i / 512 + 1);
    cd_.bytes.resize(1000, std::byte{7});
  }
  ~NbdServerTest() override {
    if (server_) run(server_->close());
    for (auto& root : roots_) run(root->detach());
  }

  void start(nbd::ServerOptions options = {}) {
    options.on_failure = [this](const std::string& text) { failures_ += text + "\n"; };
    options.on_client_left = [this] { ++left_; };
    server_.emplace(graph_, std::move(options));
    nbd::ExportOptions disk;
    disk.name = "disk";
    disk.description = "a disk";
    disk.writable = true;
    disk.allocation_depth = true;
    run(server_->add(std::move(disk), node_of(disk_)));
    nbd::ExportOptions cd;
    cd.name = "cd";
    run(server_->add(std::move(cd), node_of(cd_)));
  }

  std::shared_ptr<Node> node_of(MemoryDisk& disk) {
    roots_.push_back(open(disk));
    run(roots_.back()->set_permissions(Permissions{{}, Permissions::all()}));
    return roots_.back()->shared_node();
  }

  NbdClient client() { return NbdClient(context_.loop(), *server_); }

  MemoryDisk disk_;
  MemoryDisk cd_;
  std::vector<std::unique_ptr<Child>> roots_;
  std::optional<nbd::Server> server_;
  std::string failures_;
  int left_ = 0;
};

}  // namespace vise::test
