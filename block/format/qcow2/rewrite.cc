// Changes of the image as a whole that are no snapshots: the name of the backing file, dropping all
// content.
#include <cerrno>
#include <utility>

#include "format/qcow2/l1_tree.h"
#include "format/qcow2/metadata_io.h"
#include "format/qcow2/qcow2.h"
#include "vise/error.h"

namespace vise::qcow2 {

// What is to show below the new name is stable before the name, which goes with the whole header
// cluster in one write.
Task<void> Qcow2::write_header(Header header) {
  const std::vector<std::byte> bytes = header.encode();
  const std::vector<std::byte> old_bytes = header_.encode();
  co_await file_->flush();
  co_await replace_stable(*file_, HostOffset(0), old_bytes, bytes, stopped_);
  header_ = std::move(header);
}

Task<void> Qcow2::change_backing_file(std::string filename, std::string format) {
  co_await begin_operation();
  if (!filename.empty() && (header_.autoclear_features & autoclear::raw_data_file) != 0) {
    throw Error(EINVAL, "an image with a raw external data file cannot have a backing file");
  }
  Header header = header_;
  header.backing_name = std::move(filename);
  header.backing_format = header.backing_name.empty() ? std::string() : std::move(format);
  co_await write_header(std::move(header));
}

std::unique_ptr<Child> Qcow2::exchange_backing(std::unique_ptr<Child> backing) {
  return std::exchange(backing_, std::move(backing));
}

Task<void> Qcow2::make_empty() {
  co_await begin_operation();
  co_await drop_l1_entries(0);
  co_await cut_free_end();
}

}  // namespace vise::qcow2
