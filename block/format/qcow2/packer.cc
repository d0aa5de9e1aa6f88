// Gathering compressed clusters into large host writes.
#include "format/qcow2/packer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace vise::qcow2 {

namespace {
// Shorter pieces are copied together: an element of a vectored write costs about as much as that.
constexpr std::size_t small_piece = 4096;         // bytes
constexpr std::size_t copies_at_once = 64 << 10;  // bytes
}  // namespace

void Packer::append(HostOffset at, std::span<const std::byte> data, Receipt& receipt) {
  if (!open_) open_ = std::make_shared<Batch>();
  if (receipt.empty() || receipt.back() != open_) receipt.push_back(open_);
  open_->add(at, data);
  if (open_->size() >= enough) send();
}

void Packer::Batch::add(HostOffset at, std::span<const std::byte> data) {
  if (data.size() < small_piece) {
    if (copies_.empty() || copied_ + data.size() > copies_at_once) {
      copies_.emplace_back(copies_at_once);
      copied_ = 0;
    }
    std::byte* const copy = copies_.back().data() + copied_;
    std::memcpy(copy, data.data(), data.size());
    copied_ += data.size();
    data = {copy, data.size()};
  }
  size_ += data.size();
  if (!pieces_.empty()) {
    Piece& last = pieces_.back();
    if (last.end() == at && last.bytes.data + last.bytes.size == data.data()) {
      last.bytes.size += data.size();
      return;
    }
  }
  pieces_.push_back({at, IoSegment(data)});
}

void Packer::send() {
  if (open_) writes_.spawn(write(std::exchange(open_, nullptr)));
}

Task<void> Packer::write(std::shared_ptr<Batch> batch) {
  std::vector<Batch::Piece>& pieces = batch->pieces_;
  std::ranges::sort(pieces, {}, &Batch::Piece::at);
  for (const Batch::Piece& piece : pieces) batch->sorted_.push_back(piece.bytes);
  const std::span<const IoSegment> sorted(batch->sorted_);
  TaskScope stretches;
  for (std::size_t i = 0; i < pieces.size();) {
    const std::size_t first = i++;
    while (i < pieces.size() && pieces[i - 1].end() == pieces[i].at) ++i;
    stretches.spawn(write_stretch(pieces[first].at, sorted.subspan(first, i - first)));
  }
  try {
    co_await stretches.join();
  } catch (...) {
    batch->error_ = std::current_exception();
  }
  batch->written_.set();
}

Task<void> Packer::write_stretch(HostOffset start, std::span<const IoSegment> pieces) {
  co_await file_.event(Event::write_compressed);
  co_await file_.write(start, ConstIoVec(pieces));
}

Task<void> Packer::settled(const Receipt& receipt) {
  for (const std::shared_ptr<Batch>& batch : receipt) co_await batch->written_.wait();
}

Task<void> Packer::written(const Receipt& receipt) {
  co_await settled(receipt);
  for (const std::shared_ptr<Batch>& batch : receipt) {
    if (batch->error_) std::rethrow_exception(batch->error_);
  }
}

}  // namespace vise::qcow2
