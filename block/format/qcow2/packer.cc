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

// What one write of the file covers.
struct Packer::Stretch {
  HostOffset start;
  HostOffset end;
  std::vector<IoSegment> segments;            // of all bytes in between
  Buffer head;                                // of the first unit, what is written already
  Buffer padding;                             // zeros behind the last byte
  std::vector<std::shared_ptr<Batch>> after;  // writes of these units before
};

std::uint64_t Packer::unit() const {
  const Limits limits = file_.limits();
  return std::max(limits.write_alignment, limits.request_alignment);
}

void Packer::append(HostOffset at, std::span<const std::byte> data, Receipt& receipt,
                    Behind behind) {
  // A batch that is full ends where a unit does, so that the next one need not wait for it.
  if ((open_ ? open_->size() : 0) + data.size() >= enough) {
    const std::size_t rest = (at + data.size()).bytes() % unit();
    if (rest < data.size()) {
      const std::size_t now = data.size() - rest;
      put(at, data.first(now), receipt);
      send();
      at += now;
      data = data.subspan(now);
    }
  }
  if (!data.empty()) put(at, data, receipt);
  if (open_ && behind == Behind::nothing) open_->open_end_ = at + data.size();
  if (open_ && open_->size() >= enough) send();
}

void Packer::put(HostOffset at, std::span<const std::byte> data, Receipt& receipt) {
  if (!open_) open_ = std::make_shared<Batch>();
  if (receipt.empty() || receipt.back() != open_) receipt.push_back(open_);
  open_->add(at, data);
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

// Whatever fails, those who wait for the batch are told.
Task<void> Packer::write(std::shared_ptr<Batch> batch) {
  std::list<Stretch> stretches;
  TaskScope writes;
  try {
    gather(*batch, stretches);
    for (auto stretch = stretches.begin(); stretch != stretches.end(); ++stretch) {
      const auto next = std::next(stretch);
      const bool is_open =
          batch->open_end_ == stretch->end &&
          (next == stretches.end() || next->start >= stretch->end.align_up(unit()));
      complete_units(*stretch, batch, is_open ? Behind::nothing : Behind::unknown);
      writes.spawn(write_stretch(*stretch));
    }
  } catch (...) {
    batch->error_ = std::current_exception();
  }
  try {
    co_await writes.join();
  } catch (...) {
    batch->error_ = std::current_exception();
  }
  batch->written_.set();
  std::erase_if(shared_units_, [&](const auto& entry) { return entry.second.last == batch; });
}

void Packer::gather(Batch& batch, std::list<Stretch>& stretches) {
  std::ranges::sort(batch.pieces_, {}, &Batch::Piece::at);
  for (const Batch::Piece& piece : batch.pieces_) {
    if (stretches.empty() || stretches.back().end != piece.at) {
      stretches.emplace_back().start = piece.at;
    }
    stretches.back().segments.push_back(piece.bytes);
    stretches.back().end = piece.end();
  }
}

// Makes the stretch begin and end with whole units of the file, as far as what else they hold is
// known; of what is not the file's node takes care.
void Packer::complete_units(Stretch& stretch, const std::shared_ptr<Batch>& batch, Behind behind) {
  const std::uint64_t unit = this->unit();
  // A mirror that has ended puts another file below, which may take other units.
  if (tail_ && tail_->bytes.size() != unit) tail_.reset();
  if (unit == 1) return;
  const HostOffset first_unit = stretch.start.align_down(unit);
  const HostOffset last_unit = stretch.end.align_down(unit);
  const auto share = [&](HostOffset at) {
    Writers& writers = shared_units_[at];
    if (writers.last != batch) writers.before = std::exchange(writers.last, batch);
    if (writers.before) stretch.after.push_back(writers.before);
  };
  if (first_unit != stretch.start) share(first_unit);
  if (last_unit != stretch.end && last_unit != first_unit) share(last_unit);
  if (last_unit == first_unit && first_unit == stretch.start) share(first_unit);

  if (tail_ && tail_->end == stretch.start) {
    stretch.head = std::move(tail_->bytes);
    const std::size_t length = stretch.start - first_unit;
    stretch.segments.insert(stretch.segments.begin(), IoSegment(stretch.head.first(length)));
    stretch.start = first_unit;
  }
  if (tail_ && tail_->end > first_unit && tail_->end.align_down(unit) < stretch.end) tail_.reset();
  if (last_unit == stretch.end || behind == Behind::unknown) return;
  if (stretch.start <= last_unit) remember_tail(stretch);
  const std::size_t missing = unit - (stretch.end - last_unit);
  stretch.padding = Buffer::zeroed(missing);
  stretch.segments.emplace_back(stretch.padding.span());
  stretch.end += missing;
}

void Packer::remember_tail(const Stretch& stretch) {
  const std::uint64_t unit = this->unit();
  const std::size_t length = stretch.end - stretch.end.align_down(unit);
  tail_.emplace(Tail{stretch.end, Buffer(unit)});
  const ConstIoVec data{std::span<const IoSegment>(stretch.segments)};
  data.copy_to(tail_->bytes.first(length), data.size() - length);
}

Task<void> Packer::write_stretch(Stretch& stretch) {
  for (const std::shared_ptr<Batch>& earlier : stretch.after) co_await earlier->written_.wait();
  co_await file_.event(Event::write_compressed);
  co_await file_.write(stretch.start, ConstIoVec(std::span<const IoSegment>(stretch.segments)));
}

void Packer::forget(HostRange clusters) {
  if (tail_ && clusters.start < tail_->end && tail_->end <= clusters.end()) tail_.reset();
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
