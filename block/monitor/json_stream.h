// Cuts a stream of bytes, in chunks of any size, into JSON texts: one per message.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace vise {

class JsonStream {
 public:
  struct Limits {
    std::size_t depth = 1024;                   // of nested brackets
    std::size_t size = std::size_t{64} << 20;   // bytes of one message
    std::size_t tokens = std::size_t{2} << 20;  // of one message
  };
  /// What was found: the text of an object, array or single word, or what is wrong (text is empty
  /// then). Borrowed.
  using Sink = std::function<void(std::string_view text, std::string_view error)>;

  explicit JsonStream(Limits limits) : limits_(limits) {}
  JsonStream() : JsonStream(Limits()) {}

  /// After an error, reading starts anew behind it; what is left of the message is likely to be
  /// another one. Brackets that do not match, control characters and bytes that UTF-8 does not have
  /// end a message wherever it is.
  void feed(std::string_view bytes, const Sink& sink);
  /// No more bytes come: a message that is not complete is forgotten.
  void end() { reset(); }

 private:
  void feed_byte(char byte, const Sink& sink);
  void open_bracket(char byte, const Sink& sink);
  void close_bracket(char byte, const Sink& sink);
  void emit(const Sink& sink);
  void fail(const Sink& sink, std::string_view error);
  void reset();

  Limits limits_;
  std::string text_;      // of the message so far
  std::string brackets_;  // the open ones
  std::size_t tokens_ = 0;
  char quote_ = '\0';     // of the string that we are in
  bool escaped_ = false;  // the last byte was its backslash
};

}  // namespace vise
