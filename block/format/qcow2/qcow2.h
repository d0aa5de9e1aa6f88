// The qcow2 driver. Each file holds one idea:
//   header, create, check, info …   the format's structures and operations on whole images
//   descriptor, mapping, table_cache   from guest clusters to L2 entries
//   refcounts, space, flight           who owns what, where the next cluster goes, when it may
//   read, write, write_compressed, zero, resize, preallocate   the data paths
//   snapshot, l1_tree, vm_state, rewrite   operations on whole L1 tables and the header
//   overlap, integrity                 nothing is written over metadata; corrupt images
//   compress_in_place, compress_snapshots   what is there, compressed where it lies
//   shared_clusters                    who else refers to a cluster
//   amend, downgrade, expand_zeros     the form of an image, changed in place
//   move_plan, move_clusters, move_tables   making the file shorter
//   commit                             the order in which metadata reaches the disk
//   bitmaps, bitmap_directory, bitmap_data   persistent dirty bitmaps
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "bitmap/bitmap_set.h"
#include "format/qcow2/bitmap_directory.h"
#include "format/qcow2/decoded_cache.h"
#include "format/qcow2/descriptor.h"
#include "format/qcow2/flight.h"
#include "format/qcow2/header.h"
#include "format/qcow2/hole_scan.h"
#include "format/qcow2/mapping.h"
#include "format/qcow2/overlap.h"
#include "format/qcow2/packer.h"
#include "format/qcow2/read_ahead.h"
#include "format/qcow2/refcounts.h"
#include "format/qcow2/space.h"
#include "util/periodic.h"
#include "util/request_order.h"
#include "vise/child.h"
#include "vise/driver.h"
#include "vise/graph.h"
#include "vise/image_operations.h"
#include "vise/in_place.h"
#include "vise/sync.h"

namespace vise::qcow2 {

struct BitmapBudget;

struct Settings {
  std::uint64_t l2_cache_size = 8u << 20;        // bytes
  std::uint64_t refcount_cache_size = 2u << 20;  // bytes
  std::uint64_t decoded_cache_size = 32u << 20;  // bytes
  std::uint64_t l2_slice_size = 0;               // bytes, at most a cluster
  bool pass_discard_request = false;
  bool pass_discard_snapshot = true;
  bool pass_discard_other = false;
  bool discard_no_unref = false;
  MetadataSet overlap_checks;
  std::uint64_t cache_clean_interval = 0;  // seconds, 0: never
};

/// What the options of the node say. Throws Error(EINVAL) for what cannot be.
Settings read_settings(OpenContext& context, const Header& header);

struct CheckInUse;
class MovePlan;
class References;
class SharedTables;
struct SharedCluster;
struct SharedTable;
struct SharedWindow;
enum class WantedTables;
struct SnapshotTable;
struct ZeroExpansion;

class Qcow2 : public Driver,
              public Checkable,
              public BitmapStore,
              public HasSnapshots,
              public HasVmState,
              public HasBackingFile,
              public Amendable,
              public Completable,
              public CompressibleInPlace {
 public:
  static Task<std::unique_ptr<Driver>> open(OpenContext& context);
  ~Qcow2() override;

  std::uint64_t size() const override { return header_.virtual_size; }
  Limits limits() const override;
  Task<Extent> map(GuestRange range, MapMode mode) override;
  Task<void> read(GuestOffset offset, IoVec data) override;
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override;
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override;
  Task<void> discard(GuestRange range) override;
  Task<void> flush() override;
  Task<void> truncate(std::uint64_t size, TruncateOptions options) override;
  Task<EncodedRun> read_encoded(GuestRange range) override;
  Task<bool> write_encoded(GuestOffset offset, std::span<const EncodedExtent> extents,
                           WriteFlags flags) override;
  Task<std::uint64_t> copy_out(GuestRange range, CopySink& sink) override;
  Task<bool> copy_in(GuestOffset offset, FileStretch source, WriteFlags flags) override;
  Task<DriverInfo> info() override;
  Task<void> reopen(bool read_only) override;
  std::span<const std::string_view> changeable_options() const override;
  Task<std::function<void()>> prepare_reopen(OpenContext& context) override;
  Task<void> drain() override;
  Task<void> close() override;
  Task<CheckResult> check(CheckRequest request) override;
  bool can_store_bitmaps() const override { return header_.version >= 3; }
  void check_storable(std::string_view name, std::uint64_t granularity) const override;
  Task<void> remove_stored(std::string name) override;
  Task<void> create_snapshot(NewSnapshot request) override;
  Task<void> apply_snapshot(SnapshotSelector which) override;
  Task<void> delete_snapshot(SnapshotSelector which) override;
  Task<void> view_snapshot(SnapshotSelector which) override;
  Task<void> load_vm_state(std::uint64_t offset, IoVec data) override;
  Task<void> save_vm_state(std::uint64_t offset, ConstIoVec data) override;
  std::unique_ptr<Child> exchange_backing(std::unique_ptr<Child> backing) override;
  Task<void> change_backing_file(std::string filename, std::string format) override;
  Task<void> make_empty() override;
  std::span<const CreateOption> amend_options() const override;
  Task<void> amend(AmendRequest request) override;
  void complete() override { is_complete_ = true; }
  Task<void> begin_compressing() override;
  Task<void> check_metadata() override;
  Task<void> end_check() override;
  Task<GuestRange> find_uncompressed(GuestRange range, std::uint64_t most) override;
  Task<std::uint64_t> compress_range(GuestRange range, int level) override;
  Task<void> compress_snapshots(SnapshotStep& step, int level) override;
  Task<void> move_snapshots(SnapshotStep& step) override;
  Task<bool> plan_moves() override;
  Task<GuestRange> find_movable(GuestRange range, std::uint64_t most) override;
  Task<std::uint64_t> move_range(GuestRange range) override;
  Task<void> move_tables() override;
  GuestOffset end_of_moves() const override;
  Task<void> release_free_space() override;

  const Header& header() const { return header_; }
  /// For the crash tests alone: takes out a rule to see that they notice.
  OrderRules& order_rules() { return rules_; }
  /// For tests alone: waits until the search for holes has ended.
  Task<void> holes_searched() { return hole_scan_.idle(); }

 private:
  Qcow2(Node& node, Header header, const Settings& settings, std::unique_ptr<Child> file,
        bool read_only);

  Child& data() const { return data_file_ ? *data_file_ : *file_; }
  /// The guest offset where `cluster` ends, or the disk if that is earlier.
  GuestOffset cluster_end(std::uint64_t cluster) const;
  std::string data_file_path() const;
  Task<void> open_children(OpenContext& context);
  Task<void> release_children();
  void use(const Settings& settings);
  void drop_unused_tables();
  Task<void> load(OpenPurpose purpose);
  Task<void> prepare_for_writing();
  Task<void> repair_dirty();
  Task<void> write_autoclear(std::uint64_t features);
  Task<void> clear_incomplete();
  Task<void> settle();
  Task<void> finish_writing();

  // integrity.cc
  void require_sound() const;
  void require_running() const;
  void require_writable() const;
  std::optional<Metadata> data_overlap(HostRange range) const;
  Task<void> refuse_write(Metadata kind, HostRange range);
  void found_corrupt(std::string_view what, std::optional<HostRange> range);
  Task<void> mark_corrupt();
  Task<void> guard_tables();
  Task<void> guard_snapshots(const SnapshotTable& table);
  Task<void> require_counted_tables();

  // read.cc: a stretch of one kind, at most as long as asked for.
  struct Run {
    Extent::Kind kind = Extent::Kind::zero;
    std::uint64_t length = 0;
    std::optional<HostOffset> host;      // data: where; zero: if space is owned
    std::vector<Descriptor> compressed;  // of each cluster touched
  };
  Task<Run> find_run(GuestRange range, Mapping::Use use);
  Task<bool> extend_compressed(Run& run, GuestOffset& at, GuestOffset end);
  bool extend_run(Run& run, const Descriptor& descriptor, GuestOffset at,
                  std::uint64_t length) const;
  Task<void> read_range(GuestOffset offset, IoVec data);
  Task<void> read_run(Run run, GuestOffset offset, IoVec data);
  Task<void> read_backing(GuestOffset offset, IoVec data);

  // read_compressed.cc
  Task<void> read_compressed(std::vector<Descriptor> clusters, GuestOffset offset, IoVec data);
  Task<void> read_group(std::span<const Descriptor> clusters, IoVec data);
  Task<void> read_part(Descriptor cluster, std::uint64_t offset_in_cluster, IoVec data);
  Task<Buffer> decode_cluster(Descriptor cluster, std::uint64_t head);
  void look_ahead(GuestRange part);
  Task<void> decode_ahead(std::uint64_t cluster);

  // write.cc
  struct Piece;
  bool try_in_place(GuestOffset offset, std::uint64_t length, HostOffset* host);
  Task<void> write_allocating(GuestOffset offset, ConstIoVec data);
  struct Content;
  Task<void> store_content(GuestRange range, Content& content);
  bool fills_pieces(GuestRange range, std::span<const Piece> pieces) const;
  void give_back_unlinked(std::span<const Piece> pieces);
  Task<std::vector<Descriptor>> descriptors(std::uint64_t first, std::uint64_t count);
  std::vector<Piece> plan_pieces(GuestRange range, std::span<const Descriptor> old) const;
  Task<void> allocate_pieces(std::vector<Piece>& pieces);
  Task<void> write_piece(const Piece& piece, GuestOffset offset, ConstIoVec data);
  Task<void> copy_piece(const Piece& piece, GuestOffset offset, Content& content);
  Task<void> link_piece(const Piece& piece, GuestRange range);
  GuestRange copy_bounds(const Piece& piece, GuestRange written) const;

  // write_compressed.cc
  struct StoredCluster;  // stored_cluster.h
  class CompressJob;     // compress_job.h
  Task<void> write_compressed(GuestOffset offset, ConstIoVec data, int level);
  Task<void> store(std::uint64_t first, std::span<StoredCluster> clusters,
                   TicketQueue::Ticket& ticket);
  Task<void> place(std::uint64_t first, std::span<StoredCluster> clusters,
                   Packer::Receipt& receipt);
  Task<void> place(StoredCluster& cluster, Packer::Receipt& receipt);
  Packer::Behind behind(const StoredCluster& cluster) const;
  bool reads_as_zeros(std::uint64_t number, const Descriptor& cluster) const;

  // compress_in_place.cc
  bool is_uncompressed(const Descriptor& descriptor) const;
  template <class F>
  Task<GuestRange> find_clusters(GuestRange range, std::uint64_t most, F chosen);
  Task<void> drop_unused_space(std::uint64_t first, std::span<const Descriptor> old,
                               TicketQueue::Ticket& ticket);
  Task<void> finish_freeing();
  Task<std::uint64_t> free_run(std::uint64_t first, std::uint64_t end);

  // check_in_use.cc
  void forget_check();
  Task<void> give_back_leaks(const CheckInUse& check);
  Task<void> check_standing_still();

  // compress_snapshots.cc
  Task<SharedTables> shared_tables();
  Task<SharedWindow> window_to_change(SharedTables& tables, std::uint64_t cluster,
                                      WantedTables wanted);
  Task<void> find_shared(SharedTables& tables, SnapshotStep& step,
                         std::vector<SharedCluster>& found);
  Task<bool> next_window(SharedTables& tables, SnapshotStep& step, std::size_t found,
                         SharedWindow& window);
  Task<std::uint64_t> compress_shared(std::span<const SharedCluster> found, int level);
  Task<void> load_shared(std::span<const SharedCluster> found, Buffer& data);

  // relink.cc
  struct NewName {
    HostOffset place;       // of 8 bytes on disk, a multiple of 8
    std::uint64_t word;     // what they are to say
    std::size_t thing = 0;  // the number of what they name; names of one thing belong together
  };
  Task<void> place_shared(std::span<StoredCluster> clusters);
  enum class Names { l2_entries, l1_entries, others };
  Task<void> relink(std::vector<NewName> names, const References& dropped, Names kind);
  Task<void> write_names(std::span<const NewName> names, std::optional<Event> event);
  Task<void> reload_names();

  // move_snapshots.cc
  struct Relocation;  // relocation.h
  Task<void> find_relocations(SharedTables& tables, SnapshotStep& step,
                              std::vector<Relocation>& found);
  void add_relocations(const SharedWindow& window, std::uint64_t i,
                       std::vector<Relocation>& found) const;
  Task<bool> are_all_uses(const SharedWindow& window);
  Task<bool> has_all_references(const Relocation& relocation);
  Task<void> find_table_relocations(SharedTables& tables, SnapshotStep& step,
                                    std::vector<Relocation>& found);
  Task<std::uint64_t> relocate(std::span<const Relocation> found, Names kind);
  Task<void> load_relocations(std::span<const Relocation> found, std::span<Buffer> bytes);
  Task<void> move_snapshot_tables();
  Task<void> move_l1_tables_of_snapshots();
  Task<void> move_snapshot_table();

  // renew_unshared.cc
  Task<void> renew_unshared();
  Task<void> renew_unshared_tables(SharedTables& tables);
  Task<void> renew_unshared_clusters(SharedTables& tables);
  Task<void> renew(std::vector<Relocation>& found, HostOffset old, HostOffset name,
                   std::uint64_t word, Names kind);

  // move_clusters.cc, move_tables.cc, move_bitmaps.cc
  /// Told of a compressed cluster, and how often L2 entries name it over all L1 tables.
  using CompressedUse = std::function<void(const Descriptor&, std::uint64_t times)>;
  Task<void> add_tables(MovePlan& plan);
  Task<void> for_each_compressed(MovePlan& plan, const CompressedUse& use);
  void overlay_cached(SharedWindow& window);
  void use_compressed(const SharedWindow& window, const CompressedUse& use) const;
  Task<Buffer> read_stored(Descriptor cluster);
  Task<void> load_movable(std::uint64_t first, std::span<const Descriptor> old,
                          std::span<Buffer> bytes);
  StoredCluster moved_cluster(const Descriptor& old, std::span<std::byte> bytes) const;
  Task<void> move_l2_tables();
  Task<void> move_refcount_blocks();
  Task<void> move_refcount_table();
  Task<void> move_l1_table();
  Task<void> move_bitmaps();
  Task<void> move_bitmap_data(HostRange table);
  Task<void> move_bitmap_table(HostRange table, HostOffset name);
  Task<void> name_bitmap_directory(HostOffset at);
  Task<void> reload_bitmap_tables();
  Task<HostRange> take_run_below(HostOffset limit, std::uint64_t count);
  Task<bool> is_movable(HostRange place);
  Task<void> move_table_of_header(HostRange table,
                                  const std::function<Task<void>(HostOffset)>& name);

  // zero.cc
  // zero_keep, discard_keep: the clusters stay ours, though their content may go
  // (discard-no-unref).
  enum class Clearing { zero, zero_unmap, zero_keep, discard, discard_keep, discard_fully };
  Task<void> clear(GuestRange range, Clearing clearing);
  Task<void> clear_stretch(std::uint64_t first, std::uint64_t count, Clearing clearing);
  Task<void> discard_kept(std::span<const Descriptor> clusters);
  bool is_raw_data_file() const;
  Task<void> zero_data_file(std::uint64_t first, std::uint64_t count, Clearing clearing);
  std::optional<Descriptor> cleared(const Descriptor& old, Clearing clearing) const;

  // resize.cc
  Task<void> grow(std::uint64_t size, Preallocation preallocation);
  Task<void> grow_l1(std::uint64_t entries);
  Task<void> switch_l1(std::uint64_t entries, HostRange space);
  Task<void> zero_tail(std::uint64_t from, std::uint64_t backing_end);
  Task<void> shrink(std::uint64_t size);
  Task<void> zero_cut_off(GuestRange range);
  Task<void> write_size(std::uint64_t before, std::uint64_t after);
  Task<void> cut_free_end();

  // preallocate.cc
  Task<bool> looks_preallocated();
  Task<bool> compare_space();
  static Preallocation for_file(Preallocation preallocation);
  Task<void> preallocate(GuestRange range, Preallocation preallocation);
  Task<void> preallocate_stretch(std::uint64_t first, std::uint64_t count,
                                 Preallocation preallocation);
  Task<HostRange> preallocated_space(std::uint64_t first, std::uint64_t count,
                                     Preallocation preallocation);

  // amend.cc
  struct Amendment;
  void check_amendment(const Amendment& wanted) const;
  Task<void> change_header(const Amendment& wanted);
  Task<void> upgrade();
  Task<void> change_refcount_width(std::uint32_t order, const std::function<void(double)>& report);

  // downgrade.cc
  Task<void> check_downgrade();
  Task<void> require_none_compressed(std::uint64_t l1_entries, HostOffset l1_offset);
  Task<void> downgrade(const std::function<void(double)>& report);
  Task<void> drop_bitmaps();

  // expand_zeros.cc
  struct ZeroEntry;
  Task<void> expand_zeros(const std::function<void(double)>& report);
  Task<void> expand_window(const SharedWindow& window, ZeroExpansion& expansion);
  void require_own_place(HostOffset table) const;
  bool may_show_backing(std::uint64_t cluster) const;
  Task<void> plan_expansion(std::uint64_t cluster, std::span<const ZeroEntry> entries,
                            ZeroExpansion& expansion);
  Task<bool> owns_host(const ZeroEntry& entry, std::span<const ZeroEntry> entries);
  Task<void> carry_out(ZeroExpansion& expansion);
  Task<void> place_zeros(ZeroExpansion& expansion);
  Task<void> change_entries(const ZeroExpansion& expansion);

  // rewrite.cc
  Task<void> write_header(Header header);

  // snapshot.cc
  Task<void> begin_operation();
  Task<void> begin_snapshot_operation();
  Task<HostRange> allocate_table(std::uint64_t bytes);
  Task<void> release(const References& dropped);
  Task<void> release_replaced(const References& dropped);
  Task<void> refresh_copied();
  Task<void> drop_l1_entries(std::uint64_t first);
  Task<HostRange> write_snapshot_table(const SnapshotTable& table);
  Task<void> switch_snapshot_table(const SnapshotTable& table, HostRange space);
  Task<HostRange> share_active_tree(const References& shared, bool& raised);
  Task<void> switch_active_tree(const std::vector<std::uint64_t>& l1, std::uint64_t size,
                                HostOffset place);
  Task<void> unshare(const References& shared, bool raised);

  // vm_state.cc
  GuestRange vm_state_range(std::uint64_t offset, std::uint64_t length) const;
  Task<void> read_vm_state(GuestOffset offset, IoVec data);

  // commit.cc
  Task<void> commit();
  Task<void> commit_now();
  Task<void> commit_counts();
  Task<void> commit_if_due();

  // bitmaps.cc
  struct StoredBitmap {
    BitmapEntry entry;             // as in the directory on disk
    std::uint64_t generation = 0;  // of the bits that its table holds
  };
  void warn(const std::string& text) const;
  bool costs_only_bitmaps(const Error& error) const;
  Task<void> load_bitmaps();
  Task<void> load_bitmap(const BitmapEntry& entry, NodeBitmap& bitmap, BitmapBudget& budget);
  Task<void> claim_bitmaps();
  Task<bool> owns_alone(HostRange range);
  void forget_bitmaps();
  Task<void> store_bitmaps();
  Task<HostRange> write_bitmap(const DirtyBitmap& bits);
  Task<void> switch_bitmaps(std::vector<StoredBitmap> next, std::vector<BitmapEntry> replaced);
  void check_bitmap_size(std::string_view name, std::uint64_t granularity,
                         std::uint64_t size) const;
  void check_bitmaps_can_resize(std::uint64_t size) const;

  Node& node_;
  Context& context_;
  Header header_;
  Geometry geometry_;
  Settings settings_;
  MetadataSet overlap_checks_wanted_;  // what the guard is told of, in time for them
  OrderRules rules_;
  std::unique_ptr<Child> file_;
  std::unique_ptr<Child> data_file_;  // null: the data is in file_
  std::unique_ptr<Child> backing_;    // null: none
  bool read_only_;
  bool stopped_ = false;  // it is not known what the header on disk says, or the image is corrupt
  bool corrupt_ = false;  // found so since it was opened
  bool corruption_told_ = false;
  TaskScope marking_;
  OverlapGuard guard_;
  bool is_complete_ = false;  // an image that was being made: nothing more is to come

  FlightRegister flights_;
  TicketQueue tickets_;
  RangeLocks locks_;
  Refcounts refcounts_;
  Space space_;
  Mapping mapping_;
  HoleScan hole_scan_;
  Packer packer_;
  DecodedCache decoded_;
  ReadAhead read_ahead_;
  TaskScope decoding_ahead_;
  std::optional<bool> preallocated_;   // see looks_preallocated()
  std::unique_ptr<Periodic> cleaner_;  // null: unused slices stay until there is need of room
  std::vector<StoredBitmap> stored_bitmaps_;
  bool bitmaps_loaded_ = false;          // the node's persistent bitmaps are those of the image
  bool bitmaps_lost_ = false;            // their directory is damaged
  std::unique_ptr<MovePlan> move_plan_;  // null: none was made yet
  std::unique_ptr<CheckInUse> check_in_use_;  // null: none is under way

  // Protects the sequence of a commit; taken with nothing else held but range locks and flights.
  AsyncMutex commit_mutex_;
  std::uint64_t commits_wanted_ = 0;   // counts calls of commit()
  std::uint64_t commits_covered_ = 0;  // calls that a finished commit has served
  bool commit_due_running_ = false;
};

/// DriverType::probe.
int probe(std::span<const std::byte> head);

}  // namespace vise::qcow2
