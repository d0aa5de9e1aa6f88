#include "export/nbd/output.h"

#include <utility>

#include "vise/error.h"

namespace vise::nbd {

void Output::push(Message message) {
  queue_.push_back(std::move(message));
  changed_.wake_one();
}

void Output::finish() {
  finished_ = true;
  changed_.wake_one();
}

// False once all is sent and nothing more will come.
Task<bool> Output::ready() {
  while (queue_.empty()) {
    if (finished_) co_return false;
    co_await changed_.wait();
  }
  co_return true;
}

Task<void> Output::send_batch(std::size_t count) {
  if (broken_) co_return;
  parts_.clear();
  for (std::size_t i = 0; i < count; ++i) {
    Message& message = queue_[i];
    parts_.push_back({message.header.data(), message.header_size});
    if (message.data.empty()) continue;
    parts_.push_back({const_cast<std::byte*>(message.data.data()), message.data.size()});
  }
  try {
    co_await stream_.send(parts_);
  } catch (const Error&) {
    broken_ = true;
    stream_.shut_down();  // so that no more requests come in
  }
}

}  // namespace vise::nbd
