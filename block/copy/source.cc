#include "copy/source.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <iterator>
#include <utility>

#include "graph/chain.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise {

namespace {

constexpr std::uint64_t sector_size = 512;

}  // namespace

Task<EncodedRun> read_encoded_in_chain(Child& child, GuestRange range, std::uint64_t cluster_size,
                                       std::uint64_t disk_size, const Node* base) {
  for (Child* at = &child;;) {
    const std::uint64_t size =
        at->size() == disk_size ? disk_size : align_down(at->size(), cluster_size);
    if (range.start.bytes() >= size) co_return EncodedRun();
    range.length = std::min(range.length, size - range.start.bytes());
    EncodedRun run = co_await at->read_encoded(range);
    if (!run.extents.empty()) co_return run;
    // Where an image holds nothing itself, the one below it is asked.
    Child* const below = image_of(at->node()).backing_child();
    const bool at_base =
        below != nullptr && base != nullptr && &image_of(below->node()) == &image_of(*base);
    if (below == nullptr || at_base) co_return EncodedRun();
    const BlockStatus own =
        co_await block_status(at->node(), range, MapMode::allocation_only, &below->node());
    if (own.allocated || own.zero) co_return EncodedRun();
    if (own.length < range.length) range.length = align_down(own.length, cluster_size);
    if (range.empty()) co_return EncodedRun();
    at = below;
  }
}

CopySource::CopySource(std::vector<Child*> children, const Node* base) : base_(base) {
  assert(base == nullptr || children.size() == 1);
  for (Child* child : children) {
    const std::uint64_t length = align_up(child->size(), sector_size);
    parts_.push_back({child, size_, length});
    const auto sum = checked::add(size_, length);
    if (!sum || *sum > INT64_MAX) throw Error(EFBIG, "The sources together are too large");
    size_ = *sum;
  }
}

const CopySource::Part& CopySource::part_at(std::uint64_t offset) const {
  const auto after = std::upper_bound(
      parts_.begin(), parts_.end(), offset,
      [](std::uint64_t value, const Part& part) { return value < part.start + part.length; });
  assert(after != parts_.end());
  return *after;
}

Task<CopyPiece> CopySource::status(GuestRange range) {
  const Part& part = part_at(range.start.bytes());
  const std::uint64_t inside = range.start.bytes() - part.start;
  const std::uint64_t size = part.child->size();
  CopyPiece piece;
  piece.range = {range.start, std::min(range.length, part.length - inside)};
  if (inside >= size) {
    piece.kind = CopyKind::zero;
    co_return piece;
  }
  const GuestRange asked{GuestOffset(inside), std::min(piece.range.length, size - inside)};
  const BlockStatus status =
      co_await block_status(part.child->node(), asked, MapMode::precise, base_);
  piece.range.length = std::min(status.length, asked.length);
  if (base_ != nullptr && !status.allocated && !status.zero) {
    piece.kind = CopyKind::skip;
  } else if (status.zero) {
    piece.kind = CopyKind::zero;
  } else if (!status.data && !status.allocated) {
    piece.kind = CopyKind::zero;  // nobody in the chain has it
  } else if (status.compressed &&
             is_whole_clusters(part, {GuestOffset(inside), piece.range.length})) {
    piece.kind = CopyKind::encoded;
  } else if (status.data && !status.compressed && status.host) {
    offer_units(piece);
  }
  co_return piece;
}

// What of a data piece is no whole unit stays what it is: it is read, with its neighbours.
void CopySource::offer_units(CopyPiece& piece) const {
  if (file_unit_ == 0) return;
  const std::uint64_t head = -piece.range.start.bytes() % file_unit_;
  if (head > 0) {
    piece.range.length = std::min(piece.range.length, head);
  } else if (piece.range.length >= file_unit_) {
    piece.kind = CopyKind::in_file;
    piece.range.length = align_down(piece.range.length, file_unit_);
  }
}

// In the part and in the whole copy alike; the last cluster of the part may be a partial one.
bool CopySource::is_whole_clusters(const Part& part, GuestRange range) const {
  if (encoded_cluster_size_ == 0) return false;
  const std::uint64_t unit = encoded_cluster_size_;
  const bool to_the_end =
      range.end().bytes() == part.child->size() && part.start + part.length == size_;
  return part.start % unit == 0 && range.start.bytes() % unit == 0 &&
         (range.length % unit == 0 || to_the_end);
}

Task<EncodedRun> CopySource::read_encoded(GuestRange range) {
  const Part& part = part_at(range.start.bytes());
  const std::uint64_t inside = range.start.bytes() - part.start;
  const std::uint64_t size = part.child->size();
  const GuestRange asked{GuestOffset(inside), std::min(range.length, size - inside)};
  return read_encoded_in_chain(*part.child, asked, encoded_cluster_size_, size, base_);
}

Task<std::uint64_t> PieceSource::copy_range(GuestRange, Child&, WriteFlags) { co_return 0; }

Task<std::uint64_t> CopySource::copy_range(GuestRange range, Child& target, WriteFlags flags) {
  const Part& part = part_at(range.start.bytes());
  const std::uint64_t inside = range.start.bytes() - part.start;
  const std::uint64_t size = part.child->size();
  if (inside >= size) co_return 0;
  const GuestRange asked{GuestOffset(inside), std::min(range.length, size - inside)};
  co_return co_await part.child->copy_range(asked, target, range.start, flags);
}

Task<void> CopySource::read(GuestOffset offset, IoVec data) {
  while (!data.empty()) {
    const Part& part = part_at(offset.bytes());
    const std::uint64_t inside = offset.bytes() - part.start;
    const std::uint64_t length = std::min(data.size(), part.length - inside);
    const std::uint64_t size = part.child->size();
    const std::uint64_t stored = inside < size ? std::min(length, size - inside) : 0;
    if (stored > 0) co_await part.child->read(GuestOffset(inside), data.first(stored));
    if (stored < length) data.slice(stored, length - stored).fill(std::byte{0});
    data = data.slice(length);
    offset += length;
  }
}

}  // namespace vise
