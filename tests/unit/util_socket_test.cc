// Sockets by address, and waits that can be called off.
#include "util/socket.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <string>

#include "util/fd_watch.h"
#include "vise/error.h"
#include "vise/event_loop.h"
#include "vise/sync.h"

namespace vise {
namespace {

int code_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return 0;
}

class SocketFile {
 public:
  SocketFile() { path_ = std::string(mkdtemp(folder_)) + "/socket"; }
  ~SocketFile() {
    ::unlink(path_.c_str());
    ::rmdir(folder_);
  }
  const std::string& path() const { return path_; }

 private:
  char folder_[32] = "/tmp/vise-socket-XXXXXX";
  std::string path_;
};

void expect_connected(const SocketAddress& to, int listener) {
  const FileDescriptor client = connect_to(to);
  std::optional<FileDescriptor> server = accept_from(listener);
  ASSERT_TRUE(server.has_value());
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  char byte = 0;
  ASSERT_EQ(::recv(server->get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'x');
  EXPECT_FALSE(accept_from(listener).has_value());  // nonblocking
}

TEST(Socket, AClientOfALocalAddressIsAccepted) {
  const SocketFile file;
  const SocketAddress address = SocketAddress::local(file.path());
  const auto listeners = listen_on(address);
  ASSERT_EQ(listeners.size(), 1u);
  expect_connected(address, listeners[0].get());
}

TEST(Socket, AClientOfATcpPortIsAccepted) {
  const auto listeners = listen_on(SocketAddress::inet("127.0.0.1", "0"));
  ASSERT_EQ(listeners.size(), 1u);
  const std::uint16_t port = local_port(listeners[0].get());
  ASSERT_NE(port, 0);
  expect_connected(SocketAddress::inet("127.0.0.1", std::to_string(port)), listeners[0].get());
}

TEST(Socket, AbstractNamesMakeNoFile) {
  SocketAddress address = SocketAddress::local("vise-test-" + std::to_string(::getpid()));
  address.abstract_name = true;
  const auto listeners = listen_on(address);
  expect_connected(address, listeners.at(0).get());
  EXPECT_NE(::access(address.path.c_str(), F_OK), 0);
}

TEST(Socket, ASocketFileInUseIsLeftAlone) {
  const SocketFile file;
  const auto listeners = listen_on(SocketAddress::local(file.path()));
  EXPECT_EQ(code_of([&] { listen_on(SocketAddress::local(file.path())); }), EADDRINUSE);
  EXPECT_TRUE(accept_from(listeners[0].get()).has_value());  // the one that asked, and left
  expect_connected(SocketAddress::local(file.path()), listeners[0].get());
}

TEST(Socket, AStaleSocketFileIsReplaced) {
  const SocketFile file;
  listen_on(SocketAddress::local(file.path()));  // closed at once, the file stays
  ASSERT_EQ(::access(file.path().c_str(), F_OK), 0);
  const auto listeners = listen_on(SocketAddress::local(file.path()));
  expect_connected(SocketAddress::local(file.path()), listeners.at(0).get());
}

TEST(Socket, AFileThatIsNoSocketIsNotRemoved) {
  const SocketFile file;
  std::ofstream(file.path()) << "precious";
  EXPECT_EQ(code_of([&] { listen_on(SocketAddress::local(file.path())); }), EEXIST);
  EXPECT_EQ(::access(file.path().c_str(), F_OK), 0);
}

TEST(Socket, BadAddressesAreRefused) {
  EXPECT_EQ(code_of([] { listen_on(SocketAddress::local("")); }), EINVAL);
  EXPECT_EQ(code_of([] { listen_on(SocketAddress::local("/tmp/" + std::string(103, 'x'))); }),
            EINVAL);
  EXPECT_EQ(code_of([] { listen_on(SocketAddress::inet("127.0.0.1", "nonsense")); }), EINVAL);
  EXPECT_EQ(code_of([] { connect_to(SocketAddress::local("/nonexistent/socket")); }), ENOENT);
  EXPECT_EQ(code_of([] { prepare_socket(-1); }), ENOTSOCK);
  SocketAddress neither = SocketAddress::inet("localhost", "1");
  neither.ipv4 = neither.ipv6 = false;
  EXPECT_EQ(code_of([&] { listen_on(neither); }), EINVAL);
}

class FdWatchTest : public ::testing::Test {
 protected:
  FdWatchTest() { EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair_), 0); }
  ~FdWatchTest() override {
    for (const int fd : pair_) ::close(fd);
  }
  static Task<void> wait(FdWatch& watch, int& ended) {
    co_await watch.wait();
    ++ended;
  }

  EventLoop loop_;
  int pair_[2];
};

TEST_F(FdWatchTest, AWaitEndsWhenBytesArrive) {
  FdWatch watch(pair_[0], FdWatch::Until::readable);
  int ended = 0;
  TaskScope scope;
  scope.spawn(wait(watch, ended));
  loop_.run(loop_.yield());
  EXPECT_EQ(ended, 0);
  ASSERT_EQ(::send(pair_[1], "x", 1, 0), 1);
  loop_.run(scope.join());
  EXPECT_EQ(ended, 1);
  scope.spawn(wait(watch, ended));  // the byte is still there
  loop_.run(scope.join());
  EXPECT_EQ(ended, 2);
}

TEST_F(FdWatchTest, AWaitEndsWhenThePeerLeaves) {
  FdWatch watch(pair_[0], FdWatch::Until::readable);
  int ended = 0;
  TaskScope scope;
  scope.spawn(wait(watch, ended));
  ::shutdown(pair_[1], SHUT_RDWR);
  loop_.run(scope.join());
  EXPECT_EQ(ended, 1);
}

TEST_F(FdWatchTest, ACancelledWaitEndsAndLaterOnesDoNotStart) {
  FdWatch watch(pair_[0], FdWatch::Until::readable);
  int ended = 0;
  TaskScope scope;
  scope.spawn(wait(watch, ended));
  watch.cancel();
  EXPECT_EQ(ended, 0);  // through the loop
  loop_.run(scope.join());
  loop_.run(wait(watch, ended));
  EXPECT_EQ(ended, 2);
}

TEST_F(FdWatchTest, AWaitForEitherTellsWhichItWas) {
  FdWatch watch(pair_[0], FdWatch::Until::either);
  int ended = 0;
  loop_.run(wait(watch, ended));
  EXPECT_TRUE(watch.writable());
  EXPECT_FALSE(watch.readable());
  watch.set(FdWatch::Until::readable);
  TaskScope scope;
  scope.spawn(wait(watch, ended));
  watch.interrupt();
  loop_.run(scope.join());
  EXPECT_FALSE(watch.readable() || watch.writable() || watch.cancelled());
  ASSERT_EQ(::send(pair_[1], "x", 1, 0), 1);
  loop_.run(wait(watch, ended));
  EXPECT_TRUE(watch.readable());
  EXPECT_EQ(ended, 3);
}

Task<void> wait_for(AsyncEvent& event) { co_await event.wait(); }

TEST(Timer, RepeatsUntilItIsStopped) {
  EventLoop loop;
  Timer timer;
  AsyncEvent third;
  int calls = 0;
  timer.start(std::chrono::milliseconds(1), [&] {
    if (++calls < 3) return;
    timer.stop();
    third.set();
  });
  loop.run(wait_for(third));
  EXPECT_EQ(calls, 3);
  EXPECT_FALSE(timer.running());
}

}  // namespace
}  // namespace vise
