// One chunk of a copy: fetched from the source, then stored in the target. convert and the jobs
// both copy chunk by chunk; they differ in how they walk, and in what they hold meanwhile.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "copy/source.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/sync.h"

namespace vise {

/// How chunks are stored.
struct ChunkOptions {
  bool compressed = false;  // whole clusters, compressed by the target
  int level = 0;            // of compression, see WriteFlags
  /// What the target cannot take compressed is written normally; else that is an error.
  bool may_be_normal = false;
  bool fua = false;        // each write is stable when it completes
  bool unchanged = false;  // readers of the target see no difference, see WriteFlags
  bool verify = false;     // decodes what is copied as stored, to see that it can be
  /// Data is searched for zeros in units of so many bytes; of compressed clusters, the size of
  /// these. 0: it is not.
  std::uint64_t zero_unit = 0;
  enum class Zeroes {
    skipped,     // the target reads as zeros there, or is going to
    where_seen,  // written unless the target reads as zeros already
    own,         // written unless the target image itself holds zeros there
    as_data      // written as data: with `unchanged` the only way
  };
  Zeroes zeroes = Zeroes::where_seen;
  bool may_unmap = true;  // what becomes zeros may lose its space in the target
};

/// Its errors are CopyErrors. Lives until its writes are done; so do source, target and options.
class Chunk {
 public:
  /// `pieces` are in order and without gaps; their data will be in memory at once. With
  /// `compressed` all but the last of the target end where clusters do.
  Chunk(PieceSource& source, Child& target, const ChunkOptions& options,
        std::vector<CopyPiece> pieces);
  Chunk(const Chunk&) = delete;

  /// Reads what there is to be read, and finds out what is left to be written.
  Task<void> fetch();
  /// Starts all writes without waiting, in an order that depends on the content alone.
  void start_storing(TaskScope& writes);
  /// Bytes of the pieces that lie in files.
  std::uint64_t bytes_in_files() const;
  /// Has the host copy these, and waits for it; what it does not copy is read and written. Returns
  /// how many bytes it has copied.
  Task<std::uint64_t> copy_files();

 private:
  // Clusters copied as they are stored.
  struct Stored {
    GuestRange range;
    EncodedRun run;
  };

  // A data piece as it was read; scan() may have cut it up since.
  struct Read {
    GuestRange range;
    std::byte* bytes;
  };

  Task<void> fetch_encoded();
  Task<EncodedRun> read_run(GuestRange range);
  Task<void> verify(const EncodedRun& run, GuestOffset start);
  Task<void> fetch_data();
  Task<void> scan();
  std::span<const std::byte> content(GuestRange range) const;
  Task<void> leave_out_zeroes();

  Task<std::uint64_t> copy_file(GuestRange range);
  Task<void> write_stored(const Stored& stored);
  Task<void> write_data(GuestRange range, ConstIoVec data);
  Task<void> write_part(GuestRange range, ConstIoVec data, WriteFlags flags);
  Task<void> write_zeroes(GuestRange range);

  PieceSource& source_;
  Child& target_;
  const ChunkOptions& options_;
  const Limits limits_;  // of the target
  std::vector<CopyPiece> pieces_;
  std::vector<Stored> stored_;  // in order: the content of the encoded pieces
  std::vector<Read> reads_;     // in order: the content of the data pieces
  Buffer buffer_;               // what they lie in
};

/// Bytes of pieces that are moved.
std::uint64_t data_length(std::span<const CopyPiece> pieces);

}  // namespace vise
