// The edge between a parent and the node below it. Every request crosses one; see
// block/graph/request.cc for what it does on the way.
#pragma once

#include <memory>
#include <string>

#include "vise/driver.h"

namespace vise {

/// A parent's hold on a node. Requests of any offset and length inside the node are fine: the edge
/// checks permissions, tracks the request for drain, serialises what must not overlap, pads to the
/// node's alignment by read-modify-write, splits at its maximal transfer, emulates FUA with a
/// flush, turns zero buffers into write_zeroes() where the node's detect-zeroes says so, and
/// falls back from write_zeroes() to writing zeros.
///
/// Offsets: drivers address their children by HostOffset, which becomes the child's GuestOffset
/// here and nowhere else; roots address a node by GuestOffset.
///
/// detach() must be awaited before destruction (asserted), except while the parent is being
/// opened: if that fails, the graph itself closes what the driver had opened.
class Child {
 public:
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  Node& node() const { return *node_; }
  const std::shared_ptr<Node>& shared_node() const { return node_; }
  const std::string& name() const { return name_; }  // "file", "backing", …
  EdgeRole role() const { return role_; }
  Node* parent() const { return parent_; }  // null for roots
  Permissions permissions() const { return permissions_; }

  std::uint64_t size() const;
  Limits limits() const;

  /// Fills all of `data`. Throws Error(EIO) beyond the end of the node.
  Task<void> read(GuestOffset offset, IoVec data);
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags = {});
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags = {});
  /// Only whole units of the node's discard alignment are discarded, the rest is left alone.
  Task<void> discard(GuestRange range);
  Task<Extent> map(GuestRange range, MapMode mode = MapMode::precise);
  Task<EncodedRun> read_encoded(GuestRange range);
  Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags = {});

  /// Lets the host copy the start of `range` to `offset` of `target` (copy_file_range(2)): nothing
  /// passes through our memory, and file systems that can let the two share the space. Gives how
  /// many bytes were copied. 0 where that is not possible, be it for a node that does not keep them
  /// as they are in a file or because the host refuses: read and write them then. As for other
  /// requests, `target` must be writable; what is not aligned is left to the caller.
  Task<std::uint64_t> copy_range(GuestRange range, Child& target, GuestOffset offset,
                                 WriteFlags flags = {});
  /// Its two ends, for drivers: Driver::copy_out() and copy_in() of the node.
  Task<std::uint64_t> copy_out(GuestRange range, CopySink& sink);
  Task<bool> copy_in(GuestOffset offset, FileStretch source, WriteFlags flags);

  Task<void> read(HostOffset offset, IoVec data) { return read(guest(offset), data); }
  Task<void> write(HostOffset offset, ConstIoVec data, WriteFlags flags = {}) {
    return write(guest(offset), data, flags);
  }
  Task<void> write_zeroes(HostRange range, ZeroFlags flags = {}) {
    return write_zeroes(GuestRange{guest(range.start), range.length}, flags);
  }
  Task<void> discard(HostRange range) {
    return discard(GuestRange{guest(range.start), range.length});
  }
  Task<Extent> map(HostRange range, MapMode mode = MapMode::precise) {
    return map(GuestRange{guest(range.start), range.length}, mode);
  }
  Task<std::uint64_t> copy_out(HostRange range, CopySink& sink) {
    return copy_out(GuestRange{guest(range.start), range.length}, sink);
  }
  Task<bool> copy_in(HostOffset offset, FileStretch source, WriteFlags flags) {
    return copy_in(guest(offset), source, flags);
  }

  Task<void> flush();
  Task<void> truncate(std::uint64_t size, TruncateOptions options = {});

  /// Tells the node that the parent has reached `event`, to be awaited: see Driver::reached().
  EventPoint event(Event event) const;

  /// Changes what this edge needs; throws Error(EPERM), with nothing changed, on a conflict.
  Task<void> set_permissions(Permissions permissions);

  /// Points the edge at another node (drained by the caller).
  Task<void> replace_node(std::shared_ptr<Node> node);

  /// Lets go of the node, which is closed if this was its last parent and nobody else owns it.
  Task<void> detach();

 private:
  friend class Graph;
  friend class Node;
  Child(std::string name, EdgeRole role, Node* parent);

  void check_compressed(GuestRange range) const;
  static GuestOffset guest(HostOffset offset) { return GuestOffset(offset.bytes()); }

  std::string name_;
  EdgeRole role_;
  Node* parent_;
  std::shared_ptr<Node> node_;
  Permissions permissions_;
  std::uint32_t in_flight_ = 0;  // requests on this edge

  class Admission;
  friend class TrackedRequest;
};

/// Where a Child::copy_range() leads to.
class CopySink {
 public:
  /// `target` outlives the object.
  CopySink(Child& target, GuestOffset offset, WriteFlags flags)
      : target_(target), offset_(offset), flags_(flags) {}
  CopySink(const CopySink&) = delete;

  /// For the driver that has found the start of the range in a file: copies as much of `source` as
  /// the target can take in one request, and gives how much that was. To be called once.
  Task<std::uint64_t> take(FileStretch source);

 private:
  Child& target_;
  GuestOffset offset_;
  WriteFlags flags_;
};

}  // namespace vise
