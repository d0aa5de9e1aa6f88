// Gathering compressed clusters into large host writes.
#include "format/qcow2/packer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace vise::qcow2 {

void Packer::append(Stream stream, HostOffset at, std::span<const std::byte> data,
                    Receipt& receipt) {
  std::shared_ptr<Chunk>& open = open_[static_cast<int>(stream)];
  while (!data.empty()) {
    if (open && (open->start + open->used != at || open->used == chunk_size)) send(open);
    if (!open) {
      open = std::make_shared<Chunk>();
      open->start = at;
      open->data = Buffer(chunk_size);
    }
    const std::size_t length = std::min(data.size(), chunk_size - open->used);
    std::memcpy(open->data.data() + open->used, data.data(), length);
    open->used += length;
    if (receipt.empty() || receipt.back() != open) receipt.push_back(open);
    at += length;
    data = data.subspan(length);
  }
}

void Packer::send() {
  for (std::shared_ptr<Chunk>& chunk : open_) {
    if (chunk) send(chunk);
  }
}

void Packer::send(std::shared_ptr<Chunk>& chunk) {
  writes_.spawn(write(std::exchange(chunk, nullptr)));
}

Task<void> Packer::write(std::shared_ptr<Chunk> chunk) {
  try {
    const ConstIoVec data(chunk->data.first(chunk->used));
    co_await file_.event(Event::write_compressed);
    co_await file_.write(chunk->start, data);
  } catch (...) {
    chunk->error = std::current_exception();
  }
  chunk->written.set();
}

Task<void> Packer::settled(const Receipt& receipt) {
  for (const std::shared_ptr<Chunk>& chunk : receipt) co_await chunk->written.wait();
}

Task<void> Packer::written(const Receipt& receipt) {
  co_await settled(receipt);
  for (const std::shared_ptr<Chunk>& chunk : receipt) {
    if (chunk->error) std::rethrow_exception(chunk->error);
  }
}

}  // namespace vise::qcow2
