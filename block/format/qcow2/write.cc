// Writing uncompressed data, from memory or from a file of the host: in place where the cluster is
// ours alone, else into new clusters that are filled up with the old visible content
// (copy-on-write) before the L2 entry changes.
#include <algorithm>
#include <cassert>
#include <cerrno>

#include "format/qcow2/qcow2.h"
#include "vise/error.h"

namespace vise::qcow2 {

/// A stretch of guest clusters that one host write stores.
struct Qcow2::Piece {
  std::uint64_t first = 0;  // guest cluster
  std::uint64_t count = 0;
  HostOffset host;          // of the first cluster, once there is one
  bool in_place = false;    // entries stay as they are
  bool fresh = false;       // host clusters were allocated for this write
  bool reads_zero = false;  // fresh clusters beyond the end of the file: nothing to zero-fill
  Descriptor first_old;     // entries before the write; those between are covered completely
  Descriptor last_old;
};

/// What is written.
struct Qcow2::Content {
  ConstIoVec data;                    // bytes in memory …
  const FileStretch* file = nullptr;  // … or in a file
  bool refused = false;               // the host does not copy from there: nothing has changed
};

// True if the whole range lies in one host extent that may be written without any change of
// metadata, and nobody is changing the mapping of these clusters. Never suspends.
bool Qcow2::try_in_place(GuestOffset offset, std::uint64_t length, HostOffset* host) {
  const std::uint64_t first = geometry_.cluster_of(offset);
  const std::uint64_t last = geometry_.cluster_of(offset + (length - 1));
  if (!locks_.is_free(first, last)) return false;
  for (std::uint64_t cluster = first; cluster <= last;) {
    const std::optional<Mapping::Stretch> stretch =
        mapping_.try_get_stretch(cluster, last - cluster + 1);
    if (!stretch || stretch->same) return false;
    for (std::uint64_t i = 0; i < stretch->count; ++i, ++cluster) {
      const Descriptor& d = stretch->descriptors[i];
      if (!d.in_place(geometry_)) return false;
      if (cluster == first) {
        *host = d.host + geometry_.offset_in_cluster(offset.bytes());
      } else if (host->align_down(geometry_.cluster_size) +
                     ((cluster - first) << geometry_.cluster_bits) !=
                 d.host) {
        return false;
      }
    }
  }
  return true;
}

Task<void> Qcow2::write(GuestOffset offset, ConstIoVec data, WriteFlags flags) {
  require_writable();
  FlightRegister::Flight flight(flights_);
  if (flags.compressed) {
    co_await write_compressed(offset, data, flags.level);
  } else {
    HostOffset host;
    if (try_in_place(offset, data.size(), &host)) {
      co_await file_->event(Event::write_aio);
      const HostRange place{host, data.size()};
      if (const auto hit = data_overlap(place)) co_await refuse_write(*hit, place);
      co_await this->data().write(host, data);
      co_return;
    }
    co_await write_allocating(offset, data);
  }
  co_await commit_if_due();
}

Task<std::vector<Descriptor>> Qcow2::descriptors(std::uint64_t first, std::uint64_t count) {
  std::vector<Descriptor> result;
  result.reserve(count);
  while (result.size() < count) {
    Mapping::Stretch stretch =
        co_await mapping_.get_stretch(first + result.size(), count - result.size());
    if (stretch.same) {
      result.insert(result.end(), stretch.count, stretch.descriptors.front());
    } else {
      result.insert(result.end(), stretch.descriptors.begin(), stretch.descriptors.end());
    }
  }
  co_return result;
}

// Groups the clusters of a write: runs that are written in place, runs whose space is there but
// whose entries change (preallocated zeros, subclusters), and runs that need space.
std::vector<Qcow2::Piece> Qcow2::plan_pieces(GuestRange range,
                                             std::span<const Descriptor> old) const {
  std::vector<Piece> pieces;
  const std::uint64_t first = geometry_.cluster_of(range.start);
  for (std::uint64_t i = 0; i < old.size(); ++i) {
    const Descriptor& d = old[i];
    Piece piece;
    piece.first = first + i;
    piece.count = 1;
    piece.first_old = piece.last_old = d;
    piece.in_place = d.in_place(geometry_);
    piece.fresh = !(d.has_host && d.copied && !d.compressed);
    if (!piece.fresh) piece.host = d.host;

    Piece* previous = pieces.empty() ? nullptr : &pieces.back();
    const bool joins =
        previous != nullptr && previous->in_place == piece.in_place &&
        previous->fresh == piece.fresh &&
        (piece.fresh || previous->host + (previous->count << geometry_.cluster_bits) == piece.host);
    if (joins) {
      ++previous->count;
      previous->last_old = d;
    } else {
      pieces.push_back(piece);
    }
  }
  return pieces;
}

// Gives fresh pieces their space, splitting those for which there is no contiguous run.
Task<void> Qcow2::allocate_pieces(std::vector<Piece>& pieces) {
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].in_place) continue;
    co_await mapping_.make_writable(pieces[i].first, pieces[i].count);
    if (!pieces[i].fresh) continue;
    if (geometry_.data_file) {
      // There is just one place for each cluster: its own offset.
      pieces[i].host = HostOffset(geometry_.guest_offset(pieces[i].first).bytes());
      continue;
    }
    const std::uint64_t end_of_file = file_->size();
    const HostRange space = co_await space_.allocate_clusters(pieces[i].count);
    const std::uint64_t got = space.length >> geometry_.cluster_bits;
    pieces[i].host = space.start;
    pieces[i].reads_zero = space.start.bytes() >= end_of_file;
    if (got < pieces[i].count) {
      Piece rest = pieces[i];
      rest.first += got;
      rest.count -= got;
      rest.host = HostOffset(0);
      rest.reads_zero = false;
      // Nobody looks at the old entries of clusters in the middle: they are covered completely.
      rest.first_old = rest.count == 1 ? pieces[i].last_old : Descriptor::unallocated();
      pieces[i].last_old = got == 1 ? pieces[i].first_old : Descriptor::unallocated();
      pieces[i].count = got;
      pieces.insert(pieces.begin() + static_cast<std::ptrdiff_t>(i) + 1, rest);
    }
  }
}

Task<void> Qcow2::write_allocating(GuestOffset offset, ConstIoVec data) {
  Content content;
  content.data = data;
  co_await store_content({offset, data.size()}, content);
}

Task<bool> Qcow2::copy_in(GuestOffset offset, FileStretch source, WriteFlags flags) {
  require_writable();
  if (flags.compressed) co_return false;
  FlightRegister::Flight flight(flights_);
  HostOffset host;
  if (try_in_place(offset, source.length, &host)) {
    co_await file_->event(Event::write_aio);
    const HostRange place{host, source.length};
    if (const auto hit = data_overlap(place)) co_await refuse_write(*hit, place);
    co_return co_await data().copy_in(host, source, {});
  }
  Content content;
  content.file = &source;
  co_await store_content({offset, source.length}, content);
  co_await commit_if_due();
  co_return !content.refused;
}

Task<void> Qcow2::store_content(GuestRange range, Content& content) {
  const GuestOffset offset = range.start;
  const std::uint64_t first = geometry_.cluster_of(offset);
  const std::uint64_t last = geometry_.cluster_of(range.end() - 1);
  TicketQueue::Ticket ticket = tickets_.take();
  RangeLocks::Guard lock = locks_.enqueue(first, last);
  co_await lock.held();
  const std::vector<Descriptor> old = co_await descriptors(first, last - first + 1);
  std::vector<Piece> pieces = plan_pieces(range, old);
  // What is to be filled up with old content has to be in memory.
  content.refused = content.file != nullptr && !fills_pieces(range, pieces);
  if (content.refused) co_return;

  std::exception_ptr failure;
  try {
    const bool allocates = std::ranges::any_of(pieces, [](const Piece& p) { return !p.in_place; });
    if (allocates) {
      co_await ticket.turn();
      co_await allocate_pieces(pieces);
    }
    ticket.pass();
    TaskScope scope;
    for (const Piece& piece : pieces) {
      if (content.file != nullptr) {
        scope.spawn(copy_piece(piece, offset, content));
      } else {
        scope.spawn(write_piece(piece, offset, content.data));
      }
    }
    co_await scope.join();
    for (const Piece& piece : pieces) {
      if (!piece.in_place && !content.refused) co_await link_piece(piece, range);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure || content.refused) give_back_unlinked(pieces);
  if (failure) std::rethrow_exception(failure);
}

// Space that no entry points to. (An entry that was already changed keeps its own.)
void Qcow2::give_back_unlinked(std::span<const Piece> pieces) {
  for (const Piece& piece : pieces) {
    if (!piece.fresh || piece.host.bytes() == 0 || geometry_.data_file) continue;
    for (std::uint64_t i = 0; i < piece.count; ++i) {
      const HostOffset host = piece.host + (i << geometry_.cluster_bits);
      const std::optional<Descriptor> now = mapping_.try_get(piece.first + i);
      const bool linked = !now || (now->has_host && !now->compressed && now->host == host);
      if (!linked) space_.free_unlinked({host, geometry_.cluster_size});
    }
  }
}

// What must be written of a piece: the data, rounded out to subclusters where those are not
// supplied by their old place any more; whole clusters where the old content is to be moved.
GuestRange Qcow2::copy_bounds(const Piece& piece, GuestRange written) const {
  if (piece.in_place) return written;
  const auto unit = [&](const Descriptor& old) {
    const bool moves = piece.fresh && (old.compressed || old.allocated != 0);
    return moves ? geometry_.cluster_size : geometry_.subcluster_size;
  };
  const GuestOffset from = written.start.align_down(unit(piece.first_old));
  const GuestOffset to = written.end().align_up(unit(piece.last_old));
  return {from, to - from};
}

bool Qcow2::fills_pieces(GuestRange range, std::span<const Piece> pieces) const {
  return std::ranges::all_of(pieces, [&](const Piece& piece) {
    const GuestRange clusters{geometry_.guest_offset(piece.first),
                              piece.count << geometry_.cluster_bits};
    const GuestRange written = clusters.intersection(range);
    return copy_bounds(piece, written) == written;
  });
}

// One of which nothing is left to be filled up.
Task<void> Qcow2::copy_piece(const Piece& piece, GuestOffset offset, Content& content) {
  const GuestRange clusters{geometry_.guest_offset(piece.first),
                            piece.count << geometry_.cluster_bits};
  const GuestRange written = clusters.intersection({offset, content.file->length});
  if (piece.fresh) co_await file_->event(Event::cluster_alloc_space);
  co_await file_->event(Event::write_aio);
  const HostRange place{piece.host + (written.start - clusters.start), written.length};
  if (const auto hit = data_overlap(place)) co_await refuse_write(*hit, place);
  const FileStretch part{content.file->fd, content.file->offset + (written.start - offset),
                         written.length};
  const bool copied = co_await data().copy_in(place.start, part, {});
  if (!copied) content.refused = true;
}

Task<void> Qcow2::write_piece(const Piece& piece, GuestOffset offset, ConstIoVec data) {
  const GuestRange clusters{geometry_.guest_offset(piece.first),
                            piece.count << geometry_.cluster_bits};
  const GuestRange written = clusters.intersection({offset, data.size()});
  const GuestRange stored = copy_bounds(piece, written);
  const HostOffset host = piece.host + (stored.start - clusters.start);
  const ConstIoVec middle = data.slice(written.start - offset, written.length);

  Buffer head(written.start - stored.start);
  Buffer tail(stored.end() - written.end());
  if (!head.empty() || !tail.empty()) co_await file_->event(Event::cow_read);
  if (!head.empty()) co_await read_range(stored.start, IoVec(head.span()));
  if (!tail.empty()) {
    // Behind the end of the disk the last cluster is filled with zeros.
    const GuestOffset disk_end(std::max(header_.virtual_size, written.end().bytes()));
    const std::uint64_t visible = std::min(disk_end, stored.end()) - written.end();
    if (visible > 0) co_await read_range(written.end(), IoVec(tail.first(visible)));
    std::ranges::fill(tail.span().subspan(visible), std::byte{0});
  }
  // A fresh cluster behind the end of the file reads as zeros where it is not written.
  const bool leaves_rest = piece.reads_zero && is_zero(head.span()) && is_zero(tail.span());
  if (piece.fresh) co_await file_->event(Event::cluster_alloc_space);
  if (!leaves_rest && (!head.empty() || !tail.empty())) co_await file_->event(Event::cow_write);
  co_await file_->event(Event::write_aio);
  const HostRange place{host, stored.length};
  if (const auto hit = data_overlap(place)) co_await refuse_write(*hit, place);
  if (leaves_rest) {
    co_await this->data().write(host + head.size(), middle);
    co_return;
  }
  if (head.empty() && tail.empty()) {
    co_await this->data().write(host, middle);
    co_return;
  }
  std::vector<IoSegment> segments;
  if (!head.empty()) segments.push_back(IoSegment(head.span()));
  for (const IoSegment& segment : middle.segments()) segments.push_back(segment);
  if (!tail.empty()) segments.push_back(IoSegment(tail.span()));
  const ConstIoVec all{std::span<const IoSegment>(segments)};
  co_await this->data().write(host, all);
}

Task<void> Qcow2::link_piece(const Piece& piece, GuestRange range) {
  const GuestRange clusters{geometry_.guest_offset(piece.first),
                            piece.count << geometry_.cluster_bits};
  const GuestRange stored = copy_bounds(piece, clusters.intersection(range));
  std::vector<Descriptor> fresh;
  fresh.reserve(piece.count);
  for (std::uint64_t i = 0; i < piece.count; ++i) {
    const GuestRange cluster{clusters.start + (i << geometry_.cluster_bits),
                             geometry_.cluster_size};
    Descriptor d = Descriptor::normal(geometry_, piece.host + (i << geometry_.cluster_bits));
    const GuestRange part = cluster.intersection(stored);
    if (part.length < geometry_.cluster_size && geometry_.extended_l2) {
      const Descriptor& old = i == 0 ? piece.first_old : piece.last_old;
      const std::uint64_t from = (part.start - cluster.start) / geometry_.subcluster_size;
      const std::uint64_t count = part.length / geometry_.subcluster_size;
      const auto touched = static_cast<std::uint32_t>(((std::uint64_t{1} << count) - 1) << from);
      d.allocated = (piece.fresh ? 0 : old.allocated) | touched;
      d.zero = old.zero & ~touched;
    }
    fresh.push_back(d);
  }
  co_await mapping_.set(piece.first, fresh, Space::Reason::overwritten);
}

}  // namespace vise::qcow2
