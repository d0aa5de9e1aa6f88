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

}  // namespace vise
