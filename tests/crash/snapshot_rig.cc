// All of it runs on one event loop and one graph; only the disk below changes.
#include "crash/snapshot_rig.h"

#include <algorithm>
#include <utility>

#include "crash/model.h"
#include "graph/drained.h"
#include "vise/buffer.h"
#include "vise/driver_table.h"
#include "vise/error.h"

namespace vise::crash {

SnapshotRig::SnapshotRig(const Shape& shape) : shape_(shape), graph_(context_) {
  context_.drivers().add(disk_type_);
}

SnapshotRig::~SnapshotRig() { context_.loop().run(graph_.close_all()); }

Image SnapshotRig::prepare(std::uint64_t seed, Sizes sizes) {
  Clock clock;
  Disk disk(clock, Image(), {});
  run_on(disk, create_image());
  std::mt19937_64 random(seed);
  run_on(disk, fill_image(random, sizes));
  return disk.image();
}

ImageContent SnapshotRig::read(const Image& image) {
  Clock clock;
  Disk disk(clock, image, {});
  return run_on(disk, read_content());
}

std::string SnapshotRig::check(const Image& image) {
  Clock clock;
  Disk disk(clock, image, {});
  return run_on(disk, check_image(Copied::may_be_clear));
}

std::string SnapshotRig::check_strictly(const Image& image) {
  Clock clock;
  Disk disk(clock, image, {});
  return run_on(disk, check_image(Copied::exact));
}

Image SnapshotRig::overwrite(const Image& image, std::uint64_t seed) {
  Clock clock;
  Disk disk(clock, image, {});
  run_on(disk, overwrite_disk(seed));
  return disk.image();
}

Task<std::unique_ptr<Child>> SnapshotRig::open(bool writable, OpenPurpose purpose) {
  Value::Dict disk;
  disk.set("driver", "crash-disk");
  OpenRequest request;
  request.options.set("driver", "qcow2");
  request.options.set("discard", "unmap");
  if (shape_.has_backing()) request.options.set("backing", Value());
  request.options.set("file", std::move(disk));
  request.defaults.read_only = !writable;
  request.defaults.purpose = purpose;
  return graph_.open_root(std::move(request));
}

Task<void> SnapshotRig::create_image() {
  OpenRequest open;
  open.options.set("driver", "crash-disk");
  const std::shared_ptr<Node> node = co_await graph_.open(std::move(open));
  CreateRequest request{graph_, "crash-test", shape_.size, shape_.create_options, node};
  request.options.set("cluster_size", shape_.cluster_size);
  co_await context_.drivers().get("qcow2").create(request);
  co_await graph_.release(node);
}

std::vector<GuestRange> SnapshotRig::windows_of(const Child& root) const {
  if (!shape_.windows.empty()) return shape_.windows;
  return {{GuestOffset(0), root.size()}};
}

Task<void> SnapshotRig::write_some(Child& root, std::mt19937_64& random, unsigned requests) {
  const std::uint64_t cluster = shape_.cluster_size;
  const std::vector<GuestRange> windows = windows_of(root);
  for (unsigned i = 0; i < requests; ++i) {
    const GuestRange window = windows.size() == 1 ? windows[0] : windows[random() % windows.size()];
    const std::uint64_t size = window.end().bytes();
    std::uint64_t from = window.start.bytes() + random() % (window.length / 512) * 512;
    std::uint64_t length = std::min(size - from, (random() % (2 * cluster / 512) + 1) * 512);
    const unsigned kind = random() % 6;
    if (kind == 0) {
      const ZeroFlags flags{.may_unmap = random() % 2 == 0};
      co_await root.write_zeroes({GuestOffset(from), length}, flags);
      continue;
    }
    WriteFlags flags;
    if (kind < 3 && shape_.compressed_writes) {
      from -= from % cluster;
      length = std::min(cluster, size - from);
      flags.compressed = true;
    }
    Buffer data(length);
    fill(data, from / 512, ++contents_);
    co_await root.write(GuestOffset(from), ConstIoVec(data.span()), flags);
  }
}

Task<void> SnapshotRig::fill_image(std::mt19937_64& random, Sizes sizes) {
  std::unique_ptr<Child> root = co_await open(true);
  for (const char* name : {"old", "young"}) {
    co_await write_some(*root, random, 25);
    co_await add_snapshot(*root, name);
    if (sizes == Sizes::grow) co_await root->truncate(root->size() + 7 * shape_.cluster_size + 512);
  }
  co_await write_some(*root, random, 20);
  co_await root->detach();
}

Task<void> SnapshotRig::add_snapshot(Child& root, std::string name) {
  NewSnapshot snapshot;
  snapshot.name = std::move(name);
  auto& driver = dynamic_cast<HasSnapshots&>(root.node().driver());
  const auto work = [&] { return driver.create_snapshot(std::move(snapshot)); };
  co_await while_drained(root.node(), work);
}

Task<void> SnapshotRig::end_session(std::unique_ptr<Child> root, std::exception_ptr failure) {
  try {
    co_await root->detach();
  } catch (const Error&) {
    if (!failure) failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
}

Task<Bytes> SnapshotRig::read_disk(Child& root) {
  Bytes bytes;
  for (const GuestRange& window : windows_of(root)) {
    const std::size_t start = bytes.size();
    bytes.resize(start + window.length);
    const std::span<std::byte> part = std::span(bytes).subspan(start);
    if (!part.empty()) co_await root.read(window.start, IoVec(part));
  }
  Bytes state(shape_.vm_state);
  if (!state.empty()) {
    auto& driver = dynamic_cast<HasVmState&>(root.node().driver());
    co_await driver.load_vm_state(0, IoVec(std::span(state)));
  }
  bytes.insert(bytes.end(), state.begin(), state.end());
  co_return bytes;
}

Task<ImageContent> SnapshotRig::read_content() {
  ImageContent content;
  std::unique_ptr<Child> root = co_await open(false);
  Bytes disk = co_await read_disk(*root);
  content.disk = std::move(disk);
  const DriverInfo info = co_await root->node().driver().info();
  co_await root->detach();
  if (!info.snapshots.is_list()) co_return content;
  for (const Value& snapshot : info.snapshots.as_list()) {
    SnapshotSelector which;
    which.name = snapshot.as_dict().find("name")->as_string();
    const std::string name = *which.name;
    std::unique_ptr<Child> view = co_await open(false);
    co_await dynamic_cast<HasSnapshots&>(view->node().driver()).view_snapshot(std::move(which));
    Bytes held = co_await read_disk(*view);
    content.snapshots[name] = std::move(held);
    co_await view->detach();
  }
  co_return content;
}

Task<std::string> SnapshotRig::check_image(Copied copied) {
  std::unique_ptr<Child> root = co_await open(false, OpenPurpose::check);
  std::string findings;
  std::uint64_t harmless = 0;
  CheckRequest request;
  request.on_finding = [&](const std::string& text) {
    if (copied == Copied::may_be_clear && text.find("OFLAG_COPIED") != std::string::npos &&
        text.ends_with("refcount=1")) {
      ++harmless;
    } else {
      findings += text + "\n";
    }
  };
  auto& driver = dynamic_cast<Checkable&>(root->node().driver());
  const CheckResult result = co_await driver.check(std::move(request));
  co_await root->detach();
  if (result.corruptions == harmless && result.check_errors == 0) co_return std::string();
  co_return "check: " + findings;
}

Task<void> SnapshotRig::overwrite_disk(std::uint64_t seed) {
  std::unique_ptr<Child> root = co_await open(true);
  std::mt19937_64 random(seed);
  co_await write_some(*root, random, 30);
  co_await root->detach();
}

}  // namespace vise::crash
