#include "monitor/json_stream.h"

#include <utility>

namespace vise {

namespace {

bool is_blank(char byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n'; }

}  // namespace

void JsonStream::reset() {
  text_ = std::string();  // gives a long message's memory back
  brackets_.clear();
  tokens_ = 0;
  quote_ = '\0';
  escaped_ = false;
}

void JsonStream::fail(const Sink& sink, std::string_view error) {
  reset();
  sink({}, error);
}

void JsonStream::emit(const Sink& sink) {
  const std::string text = std::move(text_);
  reset();
  sink(text, {});
}

void JsonStream::feed(std::string_view bytes, const Sink& sink) {
  for (const char byte : bytes) feed_byte(byte, sink);
}

void JsonStream::feed_byte(char byte, const Sink& sink) {
  const auto value = static_cast<unsigned char>(byte);
  const bool is_control = value < 0x20 && (quote_ != '\0' || !is_blank(byte));
  if (is_control || value == 0xfe || value == 0xff) {
    fail(sink, quote_ != '\0' ? "JSON parse error, control character in a string"
                              : "JSON parse error, stray control character");
    return;
  }
  if (text_.size() >= limits_.size) {
    fail(sink, "JSON token size limit exceeded");
    return;
  }
  if (quote_ != '\0') {
    text_ += byte;
    if (escaped_) {
      escaped_ = false;
    } else if (byte == '\\') {
      escaped_ = true;
    } else if (byte == quote_) {
      quote_ = '\0';
      if (brackets_.empty()) emit(sink);
    }
    return;
  }
  switch (byte) {
    case '{':
    case '[':
      open_bracket(byte, sink);
      return;
    case '}':
    case ']':
      close_bracket(byte, sink);
      return;
    default:
      break;
  }
  if (brackets_.empty() && (is_blank(byte) || byte == ',' || byte == ':')) {
    if (!text_.empty()) emit(sink);
    if (!is_blank(byte))
      fail(sink, byte == ',' ? "JSON parse error, stray ','" : "JSON parse error, stray ':'");
    return;
  }
  const bool separates = byte == ',' || byte == ':';
  if (separates && ++tokens_ > limits_.tokens) {
    fail(sink, "JSON token count limit exceeded");
    return;
  }
  const bool quotes = byte == '"' || byte == '\'';
  if (quotes && brackets_.empty() && !text_.empty()) emit(sink);
  text_ += byte;
  if (quotes) quote_ = byte;
}

void JsonStream::open_bracket(char byte, const Sink& sink) {
  if (brackets_.empty() && !text_.empty()) emit(sink);
  if (brackets_.size() >= limits_.depth) {
    fail(sink, "JSON nesting depth limit exceeded");
    return;
  }
  if (++tokens_ > limits_.tokens) {
    fail(sink, "JSON token count limit exceeded");
    return;
  }
  text_ += byte;
  brackets_ += byte;
}

void JsonStream::close_bracket(char byte, const Sink& sink) {
  const bool matches = !brackets_.empty() && (brackets_.back() == '{') == (byte == '}');
  if (!matches) {
    if (brackets_.empty() && !text_.empty()) emit(sink);
    fail(sink, byte == '}' ? "JSON parse error, stray '}'" : "JSON parse error, stray ']'");
    return;
  }
  text_ += byte;
  brackets_.pop_back();
  if (brackets_.empty()) emit(sink);
}

}  // namespace vise
