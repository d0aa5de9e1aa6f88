// One export: a node under a name, and what clients may know and do about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vise/child.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/sync.h"

namespace vise {
struct NodeBitmap;
}

namespace vise::nbd {

struct ExportOptions {
  struct Bitmap {
    std::string node;  // the node that has it; empty: the first from the export's node down
    std::string name;
  };

  std::string name;         // at most 4096 bytes; empty: the default export
  std::string description;  // at most 4096 bytes
  bool writable = false;
  bool writethrough = false;  // every write is stable when it is answered
  bool allocation_depth = false;
  std::vector<Bitmap> bitmaps;
};

/// What block status can be asked for.
struct MetaContext {
  enum class Kind { allocation, depth, bitmap };
  Kind kind;
  std::uint32_t id;
  std::string name;
  const NodeBitmap* bitmap = nullptr;
};

/// A stretch of equal status.
struct StatusRun {
  std::uint64_t length;  // bytes
  std::uint32_t status;
};

class Export {
 public:
  /// Throws Error(EINVAL) for bad options, EPERM if the node may not be used like that, ENOENT for
  /// bitmaps that are not there and EBUSY for those in use.
  static Task<std::shared_ptr<Export>> open(Graph& graph, ExportOptions options,
                                            std::shared_ptr<Node> node);
  Export(const Export&) = delete;
  ~Export();  // closed (asserted)

  const std::string& name() const { return options_.name; }
  const std::string& description() const { return options_.description; }
  bool writable() const { return options_.writable; }
  bool writethrough() const { return options_.writethrough; }
  Child& root() const { return *root_; }

  /// Bytes clients see: the node's size in whole sectors. What lies past the node's end reads as
  /// zeros and takes nothing but zeros.
  std::uint64_t size() const;
  /// The block size that suits the node: its cluster size if it is compressed on the way.
  std::uint32_t preferred_block_size() const;
  const std::vector<MetaContext>& contexts() const { return contexts_; }

  /// Flushes the node. Many at the same time share the work.
  Task<void> flush();

  /// The status of `range`, which is inside size(), from its start on: at least one run, at most
  /// `max_runs`, all inside the range. May stop early.
  Task<std::vector<StatusRun>> status(const MetaContext& context, GuestRange range,
                                      std::size_t max_runs);
  /// The same for base:allocation as far as it is cheap to know: no questions to file systems.
  Task<std::vector<StatusRun>> cheap_allocation(GuestRange range, std::size_t max_runs);

  /// Connections in transmission that use the export.
  unsigned users = 0;
  /// True once it is about to go: nobody gets in any more.
  bool closing = false;
  /// Lets go of the node; no request may be in flight.
  Task<void> close();

 private:
  explicit Export(ExportOptions options) : options_(std::move(options)) {}
  void add_contexts(Node& node);
  void add_bitmap(Node& node, const ExportOptions::Bitmap& wanted);
  Task<std::vector<StatusRun>> node_status(MetaContext::Kind kind, GuestRange range,
                                           std::size_t max_runs, MapMode mode);
  std::vector<StatusRun> bitmap_status(const NodeBitmap& bitmap, GuestRange range,
                                       std::size_t max_runs) const;

  struct FlushRound {
    AsyncEvent done;
    std::optional<Error> failure;
  };
  struct UsedBitmap {
    std::shared_ptr<Node> node;
    NodeBitmap* bitmap;
  };

  ExportOptions options_;
  std::unique_ptr<Child> root_;
  std::vector<MetaContext> contexts_;
  std::vector<UsedBitmap> bitmaps_;
  std::shared_ptr<FlushRound> running_flush_;
  std::shared_ptr<FlushRound> next_flush_;
};

}  // namespace vise::nbd
