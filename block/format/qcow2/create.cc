#include "format/qcow2/create.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "format/qcow2/create_layout.h"
#include "graph/held.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"
#include "vise/util/checked.h"

namespace vise::qcow2 {
namespace {

constexpr std::uint64_t batch_bytes = 4 << 20;

// What is to be written, fixed before the first change of the file.
struct NewImage {
  Header header;
  CreateLayout layout;
  Preallocation preallocation;
  std::vector<std::byte> first_cluster;

  bool is_marked() const { return (header.incompatible_features & incompatible::incomplete) != 0; }
  std::uint64_t file_length() const { return layout.file_length(header); }
};

NewImage plan(const CreateRequest& request) {
  const CreateOptions options = CreateOptions::parse(request.options);
  NewImage image;
  image.header = options.header(request.size);
  // Version 2 has no place for the mark.
  if (request.incomplete && image.header.version >= 3) {
    image.header.incompatible_features |= incompatible::incomplete;
  }
  image.preallocation = options.preallocation;
  const auto kind = options.preallocation == Preallocation::off ? CreateLayout::Kind::plain
                                                                : CreateLayout::Kind::preallocated;
  image.layout = CreateLayout::make(image.header, kind);
  image.first_cluster = image.header.encode();
  return image;
}

Preallocation for_file(Preallocation preallocation) {
  return preallocation == Preallocation::metadata ? Preallocation::off : preallocation;
}

Permissions owner() {
  Permissions permissions;
  permissions.uses = PermissionSet(Permission::consistent_read) | Permission::write |
                     Permission::write_unchanged | Permission::resize;
  return permissions;
}

// Leaves a file of the right length that reads as zeros wherever nothing is written later, the
// header of a marked image excepted.
Task<void> clear(Child& file, const NewImage& image) {
  TruncateOptions sized;
  sized.exact = false;
  if (!image.header.has_data_file()) sized.preallocation = for_file(image.preallocation);
  // A device keeps its length and its content.
  const std::uint64_t emptied = image.is_marked() ? image.first_cluster.size() : 0;
  if (file.size() <= emptied) {
    co_await file.truncate(image.file_length(), sized);
    co_return;
  }
  if (file.size() < image.file_length()) {
    throw Error(ENOSPC, "The device is too small for the metadata of the image");
  }
  co_await file.write_zeroes(HostRange{HostOffset(emptied), image.file_length() - emptied});
}

// All metadata but the header and an empty L1 table, in large pieces.
Task<void> write_metadata(Child& file, const NewImage& image) {
  const Header& h = image.header;
  const CreateLayout& layout = image.layout;
  const std::uint64_t per_batch = std::max<std::uint64_t>(1, batch_bytes >> h.cluster_bits);
  std::uint64_t cluster = 1;
  while (cluster < layout.metadata_end()) {
    if (cluster == layout.l1 && layout.l2_tables == 0) {
      cluster += layout.l1_clusters;
      continue;
    }
    std::uint64_t end = std::min(layout.metadata_end(), cluster + per_batch);
    if (cluster < layout.l1) end = std::min(end, layout.l1);
    Buffer buffer = Buffer::zeroed((end - cluster) << h.cluster_bits);
    for (std::uint64_t c = cluster; c < end; ++c) {
      layout.fill(h, c, buffer.span().subspan((c - cluster) << h.cluster_bits, h.cluster_size()));
    }
    co_await file.write(HostOffset(cluster << h.cluster_bits), ConstIoVec(buffer.span()));
    cluster = end;
  }
}

// A whole image is one from the last write on. A marked one says from the first that it is not.
Task<void> write_image(Child& file, const NewImage& image) {
  const ConstIoVec first_cluster(std::span(image.first_cluster));
  TruncateOptions emptied;
  emptied.exact = false;
  co_await file.truncate(0, emptied);
  if (image.is_marked()) {
    co_await file.write(HostOffset(0), first_cluster);
    co_await file.flush();
  }
  co_await clear(file, image);
  co_await write_metadata(file, image);
  co_await file.flush();
  if (!image.is_marked()) co_await file.write(HostOffset(0), first_cluster);
  co_await file.flush();
}

// As long as the disk. One that is longer keeps its length, since it may be somebody's data.
Task<void> size_data_file(Child& file, const NewImage& image) {
  TruncateOptions sized;
  sized.exact = false;
  sized.preallocation = for_file(image.preallocation);
  if (file.size() < image.header.virtual_size) {
    co_await file.truncate(image.header.virtual_size, sized);
  }
  co_await file.flush();
}

// The request's, or a new one. The name is one of a file, whatever it looks like.
Task<std::unique_ptr<Child>> open_data_file(CreateRequest& request, const NewImage& image) {
  Graph& graph = request.graph;
  if (request.data_file) {
    co_return co_await graph.attach(nullptr, "data-file", EdgeRole::root, request.data_file,
                                    owner());
  }
  const std::string& name = image.header.data_file_name;
  CreateRequest file{graph, name, 0, Value::Dict(), nullptr};
  co_await graph.context().drivers().get("file").create(file);
  OpenRequest open;
  open.options.set("driver", "file");
  open.options.set("filename", name);
  co_return co_await graph.open_root(std::move(open));
}

Task<void> make_data_file(CreateRequest& request, const NewImage& image) {
  std::unique_ptr<Child> held = co_await open_data_file(request, image);
  co_await with_child(std::move(held), [&](Child& file) { return size_data_file(file, image); });
}

Task<void> create_image_file(CreateRequest& request, const NewImage& image) {
  std::unique_ptr<Child> held =
      co_await request.graph.attach(nullptr, "file", EdgeRole::root, request.file, owner());
  co_await with_child(std::move(held), [&](Child& file) { return write_image(file, image); });
}

}  // namespace

Task<void> create(CreateRequest& request) {
  const NewImage image = plan(request);
  if (!image.header.has_data_file()) {
    co_await create_image_file(request, image);
    co_return;
  }
  const std::filesystem::path data_file(image.header.data_file_name);
  std::error_code ignored;
  if (request.data_file == request.file ||
      std::filesystem::equivalent(request.file->protocol_filename(), data_file, ignored)) {
    throw Error(EINVAL, fmt::format("data_file names the image itself, '{}'", data_file.native()));
  }
  const bool existed = request.data_file || std::filesystem::exists(data_file, ignored);
  std::exception_ptr failure;
  try {
    co_await make_data_file(request, image)
        .context(fmt::format("Data file '{}'", data_file.native()));
    co_await create_image_file(request, image);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  if (!existed) std::filesystem::remove(data_file, ignored);
  std::rethrow_exception(failure);
}

}  // namespace vise::qcow2
