// What a block driver provides, and what it may rely on.
// New here? Read block/protocol/null.cc next, the smallest complete driver, then docs/drivers.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vise/buffer.h"
#include "vise/event.h"
#include "vise/io_vec.h"
#include "vise/task.h"
#include "vise/types.h"
#include "vise/value.h"

namespace vise {

class Child;
class CopySink;
class Graph;
struct MeasureRequest;
struct MeasureResult;
class Node;
class OpenContext;

enum class Codec : std::uint8_t { deflate, zstd };

/// How requests to a node must look. The edge above (Child) splits, pads and bounces accordingly,
/// so drivers see only requests that obey these. All alignments are powers of two.
///
/// A size() that is no multiple of the alignment is fine. The last read or write may then end past
/// size(), at the next multiple: a read fills what lies past the end with zeros, a write does not
/// store it (or may, where nobody can see it, like a file's last sector with O_DIRECT). Zero
/// writes, discards and map() never reach past size(): their last unit may be a partial one.
struct Limits {
  std::uint32_t request_alignment = 1;  // offsets and lengths of reads and writes
  std::uint32_t write_alignment = 0;    // of writes where it is larger, 0 = request_alignment
  std::uint32_t memory_alignment = 1;   // power of two, <= Buffer::alignment; of every segment
  std::uint64_t max_transfer = 0;       // bytes of one read or write, 0 = no limit below 2^31
  std::uint64_t optimal_transfer = 0;   // bytes, 0 = nothing known
  std::uint32_t max_segments = 0;       // of one vector, 0 = no limit
  std::uint64_t zero_alignment = 0;     // write_zeroes(); 0 = request_alignment
  std::uint64_t max_zeroes = 0;         // 0 = no limit
  std::uint64_t discard_alignment = 0;  // discard(); 0 = request_alignment
  std::uint64_t max_discard = 0;        // 0 = no limit
  std::uint64_t cluster_size = 0;       // allocation unit of a format node, 0 = none
  bool native_fua = false;       // write() and write_zeroes() honour fua; else it is emulated
  bool can_zero = false;         // write_zeroes() works; else zeros are written as data
  bool can_discard = false;      // discard() does something
  bool growable = false;         // writes past size() make it larger (a file's do)
  bool can_compress = false;     // write() understands WriteFlags::compressed
  Codec codec = Codec::deflate;  // with can_compress: how they are stored
};

/// How one write is to be done.
struct WriteFlags {
  bool fua = false;          // stable when the write completes
  bool compressed = false;   // store compressed; whole clusters only (or up to the end of the disk)
  bool unchanged = false;    // does not change what readers see (needs only write_unchanged)
  bool serialising = false;  // later overlapping requests wait for it, it waits for earlier ones
  int level = 0;             // of compression; 0 = the codec's default, see codec/codec.h
};

struct ZeroFlags {
  bool may_unmap = false;  // the range may be deallocated if it then reads as zeros
  bool fua = false;
  bool no_fallback = false;  // Error(ENOTSUP) rather than writing zeros as data
  bool serialising = false;
};

enum class Preallocation { off, metadata, falloc, full };

struct TruncateOptions {
  Preallocation preallocation = Preallocation::off;
  bool exact = true;         // false: a longer result is fine (devices, O_DIRECT)
  bool zero_new = true;      // what is added must read as zeros, even above a longer backing image
  bool allow_shrink = true;  // false: Error(EINVAL) if the size would decrease
};

/// Where one stretch of a node is stored.
struct Extent {
  /// zero: reads as zeros without looking further. data: bytes at `host` in `node`.
  /// compressed: decoded by the driver. backing: not here; the backing image decides, and where
  /// there is none (or it is shorter) the stretch reads as zeros.
  enum class Kind { zero, data, backing, compressed };
  Kind kind = Kind::data;
  std::uint64_t length = 0;  // bytes from the queried offset on; never 0 within the node
  /// data: where; compressed: where the stored bytes start; zero, backing: set if space is owned
  /// there.
  std::optional<HostOffset> host;
  /// The node whose guest offsets `host` counts in: a child of the queried node, or that node
  /// itself if it is a protocol. Null without `host`, or if not addressable (compressed data).
  Node* node = nullptr;
  std::uint64_t stored_length = 0;  // compressed: bytes, an upper bound
  /// data: whether bytes are stored there at all is for `node` to say (raw, filters); whoever wants
  /// to know goes on with its map(), as block_status() does.
  bool forwarded = false;
  /// data of a format: `node` may have holes there, which read as zeros; precise maps look for them
  /// (preallocated images, whose entries say nothing of what has been written).
  bool may_have_holes = false;
};

/// Whether map() may stop at what is cheap to know.
enum class MapMode {
  precise,         // ask the file system about holes
  allocation_only  // only zero/data/backing as the format's tables say
};

/// One compressed cluster as it is stored, for moving it without decoding. The bytes are borrowed.
struct EncodedExtent {
  Codec codec = Codec::deflate;     // deflate: a raw RFC 1951 stream
  std::uint64_t guest_length = 0;   // bytes it decodes to: the cluster size
  std::span<const std::byte> data;  // the stored bytes; may end in slop the decoder never reads
};

/// Consecutive compressed clusters, read in one go.
struct EncodedRun {
  Buffer storage;                      // what the extents' data lies in
  std::vector<EncodedExtent> extents;  // empty: the first cluster is not to be had encoded
};

/// Bytes that lie in a file of the host. The descriptor is borrowed.
struct FileStretch {
  int fd = -1;
  std::uint64_t offset = 0;  // bytes
  std::uint64_t length = 0;  // bytes, not 0
};

enum class DriverKind { protocol, format, filter };

/// What `info` tells beyond size and file names.
struct DriverInfo {
  std::uint64_t cluster_size = 0;                // 0: the format has none
  std::optional<std::uint64_t> allocated_size;   // protocols: bytes that are taken up on the host
  std::optional<std::uint64_t> vm_state_offset;  // guest offset
  std::optional<bool> dirty;                     // "cleanly shut down: no"
  bool encrypted = false;
  std::optional<std::string> backing_filename;  // as stored
  std::optional<std::string> backing_format;    // as stored
  Value snapshots;                              // list of SnapshotInfo dictionaries, or null
  Value format_specific;                        // {"type": …, "data": {…}}, or null
};

/// What the parents of a node do with it, and what they let others do. The values are QEMU's bit
/// numbers, on which its file locks rest.
enum class Permission : std::uint32_t {
  consistent_read = 1,
  write = 2,
  write_unchanged = 4,
  resize = 8,
};
using PermissionSet = FlagSet<Permission>;

struct Permissions {
  PermissionSet uses;
  PermissionSet shares;
  static constexpr PermissionSet all() {
    return PermissionSet(Permission::consistent_read) | Permission::write |
           Permission::write_unchanged | Permission::resize;
  }
  bool operator==(const Permissions&) const = default;
};

/// What a child is to its parent.
enum class EdgeRole {
  storage,    // "file" of a format: its metadata and, without a data file, its data
  data_file,  // guest data only
  backing,    // supplies what is not allocated above
  filtered,   // the one node below a filter, same guest offsets
  target,     // written by a job
  root,       // held by a program, job or export rather than by a node
};

/// The behaviour of one block node: an open image, device or filter.
///
/// The edge above splits, pads and bounces, so every request lies inside size(), obeys limits()
/// and arrives on the graph's event loop. Failures are thrown as Error; a failed write may be
/// partly done. Vectors and spans are borrowed until the task completes.
class Driver {
 public:
  virtual ~Driver();

  virtual std::uint64_t size() const = 0;  // bytes the guest can address
  virtual Limits limits() const { return {}; }

  /// Describes the extent at `range.start`, looking no further than the end of `range`, which is
  /// not empty and lies inside size().
  virtual Task<Extent> map(GuestRange range, MapMode mode) = 0;

  /// Fills all of `data`. Never reads short.
  virtual Task<void> read(GuestOffset offset, IoVec data) = 0;

  /// Stores all of `data`; durable after a later flush(), or at once with fua if
  /// limits().native_fua. Compressed writes of a driver that cannot replace what is already
  /// allocated throw Error(ENOTSUP) before anything has changed.
  virtual Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) = 0;

  /// Makes `range` read as zeros. Throws Error(ENOTSUP), with nothing changed, where it cannot be
  /// done without writing zeros as data; the edge then writes them, unless told no_fallback.
  virtual Task<void> write_zeroes(GuestRange range, ZeroFlags flags);

  /// The content of `range` is no longer needed; it may read as before or as zeros afterwards.
  virtual Task<void> discard(GuestRange range);

  /// Returns once every write that completed before the call would survive power loss.
  virtual Task<void> flush() = 0;

  /// Changes size(). Throws Error(ENOTSUP) where it cannot be changed.
  virtual Task<void> truncate(std::uint64_t size, TruncateOptions options);

  /// The compressed clusters from `range.start` (aligned to the cluster size) on, as they are
  /// stored: as many as lie together on the host, none past the end of `range`. No extents if the
  /// first cluster is not compressed or not to be had that way.
  virtual Task<EncodedRun> read_encoded(GuestRange range);

  /// Stores encoded clusters from `offset` (aligned to the cluster size) on as they are. False,
  /// with nothing changed, if a codec or length does not fit. The level of `flags` means nothing.
  virtual Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                                   WriteFlags flags);

  /// Child::copy_range() from here: passes the start of `range` on to the child that stores it as
  /// it is, or, if that is a file of the host, to `sink`. Gives how many bytes from its start on
  /// were copied; 0 if that is not possible.
  virtual Task<std::uint64_t> copy_out(GuestRange range, CopySink& sink);

  /// Child::copy_range() to here: has the host copy `source` to where writes to `offset` go. False
  /// if it cannot: readers see no difference, but perhaps in bytes that were to be copied.
  virtual Task<bool> copy_in(GuestOffset offset, FileStretch source, WriteFlags flags);

  virtual Task<DriverInfo> info();

  /// What this driver needs of the child `edge`, given what its own parents need of it.
  /// The default suits filters (parents' needs pass through) and formats (consistent_read and,
  /// when writable, write and resize on storage, neither of them shared; backing: read only,
  /// writes shared if the parents share them).
  virtual Permissions child_permissions(const Child& edge, Permissions parents) const;

  /// Called whenever the sum of what the parents need changes (protocols take their file locks
  /// here). Throws, with nothing changed, if it cannot be granted.
  virtual Task<void> apply_permissions(Permissions cumulative);

  /// Switches between read-only and read-write; called drained. The children are writable while it
  /// runs, in both directions: they are reopened before, or after.
  virtual Task<void> reopen(bool read_only);

  /// Names of the driver's own options that may change while the node is open; all others have been
  /// found to be as they were when prepare_reopen() is called.
  virtual std::span<const std::string_view> changeable_options() const;
  /// The node gets other options: its driver's own are context.options(), without those of
  /// children; generic ones context.node_options(). Called drained, children have been exchanged by
  /// then, but open_child() must not be called. Throws, with nothing changed, for what cannot be;
  /// else gives what makes it so, which neither waits nor throws and may be dropped uncalled.
  /// Empty: there is nothing to do.
  virtual Task<std::function<void()>> prepare_reopen(OpenContext& context);

  /// Writes out what the driver itself holds back (write buffers), called with no request in
  /// flight from above.
  virtual Task<void> drain();

  /// A parent has reached `event`, or a request to this very node has. Null, unless the request is
  /// to be held back; only blkdebug does that.
  virtual EventPause* reached(Event event);

  /// Releases everything, children included, after a last flush. Called once, drained, before
  /// destruction. Errors of the last flush are thrown after all has been released.
  virtual Task<void> close() = 0;
};

/// One creation option as `create -o` knows it.
struct CreateOption {
  enum class Type { string, size, number, boolean };
  std::string_view name;  // with underscores, e.g. cluster_size
  Type type;
  std::string_view description;
  /// As printed in the "Formatting" line when not given; empty: printed only when given.
  std::string_view default_value = {};
};

/// What an image is to be created from.
struct CreateRequest {
  Graph& graph;
  std::string filename;
  std::uint64_t size;          // bytes
  Value::Dict options;         // the -o options by name, values as typed (strings) or JSON
  std::shared_ptr<Node> file;  // formats: the node to format, open read-write; protocols: null
  /// Formats: the node that becomes the external data file that `options` name. It keeps what it
  /// holds. Null: a file of that name is made.
  std::shared_ptr<Node> data_file = {};
  /// Content is going to follow: formats that can mark the image as incomplete do, from the first
  /// byte they write. It opens for OpenPurpose::make alone until Completable::complete().
  bool incomplete = false;
};

/// A kind of driver: an entry of the driver table, or of a plugin.
struct DriverType {
  std::string_view name;
  DriverKind kind;

  /// Opens a node. Children are opened through `context`, which also holds the driver's options;
  /// options the driver does not know are an Error(EINVAL) (OptionReader::finish() does that).
  Task<std::unique_ptr<Driver>> (*open)(OpenContext& context);

  /// Formats: how sure (0 to 100) the first bytes of a file (up to 2 KiB) are of this format.
  int (*probe)(std::span<const std::byte> head) = nullptr;

  /// Formats and protocols that can make a new image.
  Task<void> (*create)(CreateRequest& request) = nullptr;
  std::span<const CreateOption> create_options = {};
  bool supports_backing = false;

  /// Formats: how large an image would become (vise/image_operations.h).
  Task<MeasureResult> (*measure)(MeasureRequest& request) = nullptr;
};

}  // namespace vise
