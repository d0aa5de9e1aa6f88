// The graph of block nodes: opening, closing, reopening, draining; what a driver sees while it is
// being opened.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vise/child.h"
#include "vise/driver.h"
#include "vise/sync.h"
#include "vise/value.h"

namespace vise {

class Context;

enum class DetectZeroes { off, on, unmap };

/// What an image is opened for. info: questions only, so that encrypted images open without a key.
/// check: Checkable::check(), so that images open which only a repair can mend. make: io, on an
/// image that may be marked as incomplete (CreateRequest::incomplete).
enum class OpenPurpose { io, info, check, make };

/// The options every node has, whatever its driver.
struct NodeOptions {
  std::string node_name;  // empty: one is made up, starting with '#'
  bool read_only = false;
  bool auto_read_only = false;  // fall back to read-only where writing is not permitted
  bool force_share = false;     // take no locks against writers elsewhere; only with read_only
  bool cache_direct = false;    // O_DIRECT
  bool cache_no_flush = false;  // flushes do nothing
  bool discard_unmap = false;   // discard() reaches the driver
  DetectZeroes detect_zeroes = DetectZeroes::off;
  OpenPurpose purpose = OpenPurpose::io;  // of this node alone, not inherited
};

/// A driver's place in the graph: its name, options, edges and requests in flight.
class Node : public std::enable_shared_from_this<Node> {
 public:
  ~Node();

  const std::string& name() const { return options_.node_name; }
  Driver& driver() const { return *driver_; }
  const DriverType& type() const { return *type_; }
  Graph& graph() const { return graph_; }
  const NodeOptions& options() const { return options_; }
  bool read_only() const { return options_.read_only; }
  /// All options the node was opened with, children by value; what json: file names are made of.
  const Value::Dict& full_options() const { return full_options_; }

  std::uint64_t size() const { return driver_->size(); }
  /// Lives without parents: see Graph::adopt().
  bool owned_by_graph() const { return owned_by_graph_; }
  const std::vector<Child*>& parents() const { return parents_; }
  const std::vector<Child*>& children() const { return children_; }
  /// The child with that name, or null.
  Child* child(std::string_view name) const;
  /// The child whose guest offsets are this node's: a filter's only child. Null otherwise.
  Child* filtered_child() const;
  /// The child that supplies what is not allocated here. Null otherwise.
  Child* backing_child() const;
  /// What the parents need of this node, summed up.
  Permissions cumulative_permissions() const;

  /// The name people see: the plain file name where driver and file name say it all, else
  /// "json:{…}".
  std::string filename() const;
  /// The file name relative backing names resolve against: that of the first protocol node below.
  std::string protocol_filename() const;

  /// Stops new requests from above and waits for those in flight, here and below; then lets
  /// drivers write out what they hold. Nests; each begin needs an end.
  Task<void> drain_begin();
  void drain_end();
  std::size_t requests_in_flight() const;

  struct Tracking;  // of requests in flight: block/graph/tracking.h
  Tracking& tracking() const { return *tracking_; }

 private:
  friend class Child;
  friend class Graph;
  friend class OpenContext;
  Node(Graph& graph, const DriverType& type, NodeOptions options);

  Graph& graph_;
  const DriverType* type_;
  NodeOptions options_;
  Value::Dict full_options_;
  std::unique_ptr<Driver> driver_;
  std::vector<Child*> parents_;
  std::vector<Child*> children_;
  std::unique_ptr<Tracking> tracking_;
  bool owned_by_graph_ = false;  // added by name (blockdev-add): lives without parents
  bool closed_ = false;
};

/// How a plain file name, json: name or option tree is opened.
struct OpenRequest {
  std::string filename;      // plain, "PROTOCOL:…" or "json:{…}"; empty: `options` say all
  std::string format;        // driver of the format node; empty: probe
  Value::Dict options;       // override what the file name says
  NodeOptions defaults;      // for the node and, where inheritable, its children
  bool open_backing = true;  // false: the backing chain stays closed
  bool warn_about_probing = true;
  std::string option_path;  // stands in front of option names in errors, "file."
};

/// Other options for an open node. A driver and a name, if given, are as they were. Children are
/// given by the name of a node, which takes the place of the one that is there, or by options for
/// the one that was opened together with its parent; "backing" may also be null, for none.
struct NodeChange {
  std::shared_ptr<Node> node;
  Value::Dict options;  // nested, or with dotted keys
  /// What becomes of options that are not given.
  enum class Others { become_default, stay } others = Others::become_default;
  std::string option_path;  // stands in front of option names in errors, "options[0]."
};

/// All nodes of one event loop.
class Graph {
 public:
  explicit Graph(Context& context);
  ~Graph();  // all nodes must have been closed (asserted): await close_all()
  Graph(const Graph&) = delete;

  Context& context() const { return context_; }

  /// Opens a node with all it needs. The result has no parents yet: attach() to it, or it is
  /// closed by release(). Errors name the file.
  Task<std::shared_ptr<Node>> open(OpenRequest request);
  /// The same with a driver that stands in no table: the filters that jobs put above nodes. `type`
  /// outlives the node.
  Task<std::shared_ptr<Node>> open_as(const DriverType& type, OpenRequest request);
  /// Closes `node` unless it has parents or is owned by name.
  Task<void> release(std::shared_ptr<Node> node);

  /// A new edge from `parent` (null: a program, job or export) to `node`. Throws Error(EPERM),
  /// naming both sides, if other parents do not share what it needs.
  Task<std::unique_ptr<Child>> attach(Node* parent, std::string name, EdgeRole role,
                                      std::shared_ptr<Node> node, Permissions permissions);

  /// Opens and attaches as a root that may be read (and, unless read-only, written and resized).
  Task<std::unique_ptr<Child>> open_root(OpenRequest request);

  /// Switches a node, with the children that need it, between read-only and read-write.
  Task<void> reopen(Node& node, bool read_only);
  /// Gives nodes other options: all of them, or none if one is refused. Of two changes of one node
  /// the later counts. What is in flight ends before, what comes meanwhile waits.
  Task<void> reopen(std::vector<NodeChange> changes);

  /// Null if there is no node of that name.
  Node* find(std::string_view node_name) const;
  const std::vector<Node*>& nodes() const { return nodes_; }

  /// Keeps `node` alive without parents, as blockdev-add does, until disown().
  void adopt(std::shared_ptr<Node> node);
  /// The opposite of adopt(): closes the node unless it has parents.
  Task<void> disown(Node& node);

  /// Closes every node that has no parents, and so all below them.
  Task<void> close_all();

  /// Called with warnings for people (probed raw images …); default: stderr.
  std::function<void(const std::string&)> on_warning;
  /// Told once for each node, the first time it finds its image corrupt; default: a warning.
  std::function<void(const ImageCorruption&)> on_image_corrupted;
  /// Called with events of nodes, named and described as in QMP (qapi/). May be empty. Must not
  /// throw; requests are under way.
  std::function<void(std::string_view event, Value::Dict data)> on_event;
  /// May json:, protocol prefixes etc. in backing names of images be followed? Default: plain file
  /// names only.
  bool trust_image_names = false;

 private:
  friend class Child;
  friend class Node;
  friend class OpenContext;
  struct Internals;  // what block/graph/ shares among its files: block/graph/internals.h
  Context& context_;
  std::vector<Node*> nodes_;
  std::vector<std::shared_ptr<Node>> adopted_;
  std::vector<std::shared_ptr<Node>> abandoned_;  // of children that died with a failed open
  AsyncMutex permission_mutex_;                   // one change of permissions at a time
  std::uint64_t next_node_number_ = 0;
  std::uint64_t visits_ = 0;  // walks over the graph so far
};

/// What a driver sees while it is being opened.
class OpenContext {
 public:
  Context& context() const { return node_.graph().context(); }
  Graph& graph() const { return node_.graph(); }
  /// The node that is being opened; it has no driver yet (but when it is reopened).
  Node& node() const { return node_; }
  const NodeOptions& node_options() const {
    return wanted_ != nullptr ? *wanted_ : node_.options();
  }
  /// The file name the user gave for this node, if it was one; for messages.
  const std::string& filename() const { return filename_; }
  /// The driver's own options, those of children included; generic ones are taken out already.
  Value::Dict& options() { return options_; }
  /// "file." for the options of the child "file"; empty at the top. Errors about options start
  /// with it.
  const std::string& option_path() const { return option_path_; }
  bool open_backing() const { return open_backing_; }
  /// True if nobody named this format: the content of the file led to it.
  bool probed() const { return probed_; }
  /// `auto_read_only` drivers call this when the file turns out to be writable by nobody.
  void became_read_only() { node_.options_.read_only = true; }

  /// Opens the child described by option `name` (taken out of options()): a node name or nested
  /// options; for a format's "file" also the plain file name. Throws Error(EINVAL) if missing.
  Task<std::unique_ptr<Child>> open_child(std::string name, EdgeRole role);
  /// The same for names that come from the image (backing, data file): `request` gives file name,
  /// relative to the image's directory, and format; options the user gave under `name` override it.
  /// What the child inherits replaces request.defaults. Null for a backing file that is not to be
  /// opened: none given, switched off by the user ("backing": null), or !open_backing().
  Task<std::unique_ptr<Child>> open_child(std::string name, EdgeRole role, OpenRequest request);

 private:
  friend class Graph;
  explicit OpenContext(Node& node) : node_(node) {}

  Node& node_;
  std::string filename_;
  Value::Dict options_;
  std::string option_path_;
  bool open_backing_ = true;
  bool probed_ = false;
  std::shared_ptr<Node> probed_file_;    // opened for probing already; becomes child "file"
  const NodeOptions* wanted_ = nullptr;  // of a node that is open and gets other options

  // What is being opened above: bounds the depth, finds backing chains that bite their tail.
  OpenContext* parent_ = nullptr;
  EdgeRole role_ = EdgeRole::root;
  unsigned depth_ = 0;
  struct FileIdentity {
    std::uint64_t device;
    std::uint64_t inode;
    bool operator==(const FileIdentity&) const = default;
  };
  std::vector<FileIdentity> files_;  // of this image
};

/// What the bytes of a stretch are and where, seen from the top of a backing chain.
struct BlockStatus {
  bool data = false;       // bytes are stored, possibly compressed
  bool zero = false;       // reads as zeros
  bool allocated = false;  // by a node at `depth` (else the chain has nothing here)
  bool compressed = false;
  std::uint64_t length = 0;
  std::uint64_t stored_length = 0;  // compressed: bytes, an upper bound
  int depth = 0;                    // 0: the top image, 1: its backing image, …
  std::optional<HostOffset> host;   // position in `file`
  Node* file = nullptr;             // the protocol node that stores it
};

/// Walks from `node` down its backing chain (filters are transparent and add no depth) until a
/// node knows about the start of `range`, or until `base` (exclusive; null: the whole chain).
Task<BlockStatus> block_status(Node& node, GuestRange range, MapMode mode = MapMode::precise,
                               const Node* base = nullptr);

}  // namespace vise
