// What a copy reads: one node or several, one behind the other.
#pragma once

#include <cstdint>
#include <vector>

#include "vise/child.h"
#include "vise/graph.h"

namespace vise {

/// What is to be done with one stretch of the source.
enum class CopyKind {
  data,     // has to be read
  encoded,  // compressed clusters that may be copied as they are stored
  in_file,  // stored as it is in a file, from which the host may copy it
  zero,     // reads as zeros
  skip      // held by `base` or below: not part of the copy
};

/// One stretch, in the offsets of the whole copy.
struct CopyPiece {
  CopyKind kind = CopyKind::data;
  GuestRange range;
  bool operator==(const CopyPiece&) const = default;
};

/// Child::read_encoded() of the image in the backing chain of `child` that holds the start of
/// `range`, as far as it does. `disk_size` is what the whole shows: of a shorter backing image only
/// whole clusters are taken. No extents where there is nothing compressed above `base` (null: in
/// all of the chain), or not in whole clusters.
Task<EncodedRun> read_encoded_in_chain(Child& child, GuestRange range, std::uint64_t cluster_size,
                                       std::uint64_t disk_size, const Node* base);

/// What chunks are read from.
class PieceSource {
 public:
  virtual ~PieceSource() = default;
  /// The first stretch of `range`, never empty, never longer than `range`.
  virtual Task<CopyPiece> status(GuestRange range) = 0;
  virtual Task<void> read(GuestOffset offset, IoVec data) = 0;
  /// Of a piece that status() has told as encoded: as many of its clusters as one image stores side
  /// by side. No extents: there are none any more.
  virtual Task<EncodedRun> read_encoded(GuestRange range) = 0;
  /// Child::copy_range() of a piece that status() has told as in_file.
  virtual Task<std::uint64_t> copy_range(GuestRange range, Child& target, WriteFlags flags);
};

/// Nodes read as one, each rounded up to whole sectors (512 bytes) with zeros.
class CopySource final : public PieceSource {
 public:
  /// The children are borrowed. `base` (only with one child): what it and the nodes below it hold
  /// is skipped; null: nothing is.
  CopySource(std::vector<Child*> children, const Node* base);

  /// From now on status() tells compressed clusters of that size as CopyKind::encoded.
  void offer_encoded(std::uint64_t cluster_size) { encoded_cluster_size_ = cluster_size; }

  /// From now on status() tells what lies in files as CopyKind::in_file, in whole units of `unit`
  /// bytes (0: no more).
  void offer_files(std::uint64_t unit) { file_unit_ = unit; }

  std::uint64_t size() const { return size_; }

  Task<CopyPiece> status(GuestRange range) override;
  Task<void> read(GuestOffset offset, IoVec data) override;
  /// read_encoded_in_chain() of the part that `range` starts in.
  Task<EncodedRun> read_encoded(GuestRange range) override;
  Task<std::uint64_t> copy_range(GuestRange range, Child& target, WriteFlags flags) override;

 private:
  struct Part {
    Child* child;
    std::uint64_t start;   // in the whole
    std::uint64_t length;  // a multiple of 512
  };
  const Part& part_at(std::uint64_t offset) const;
  bool is_whole_clusters(const Part& part, GuestRange range) const;
  void offer_units(CopyPiece& piece) const;

  std::vector<Part> parts_;
  const Node* base_;
  std::uint64_t encoded_cluster_size_ = 0;  // 0: nothing is told as encoded
  std::uint64_t file_unit_ = 0;             // 0: nothing is told as in_file
  std::uint64_t size_ = 0;
};

}  // namespace vise
