// info, alloc, map: questions about the image.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "graph/chain.h"
#include "tools/common/sizes.h"
#include "tools/common/specific.h"
#include "tools/io/command.h"
#include "vise/child.h"
#include "vise/graph.h"

namespace vise::tools {

namespace {

std::string size_text(std::uint64_t bytes) { return io_size_text(static_cast<double>(bytes)); }

// How far the range stays allocated by the image itself, or not allocated. What its backing image
// supplies does not count.
Task<std::pair<bool, std::uint64_t>> allocated_run(Node& image, GuestRange range) {
  const BlockStatus status =
      co_await block_status(image, range, MapMode::allocation_only, backing_of(image));
  co_return std::pair(status.allocated, std::min(status.length, range.length));
}

}  // namespace

Task<void> run_info(Call& call) {
  Node& image = call.state.image_node();
  print(fmt::format("format name: {}\n", image.type().name));
  const DriverInfo info = co_await image.driver().info();
  print(fmt::format("cluster size: {}\n", size_text(info.cluster_size)));
  print(fmt::format("vm state offset: {}\n", size_text(info.vm_state_offset.value_or(0))));
  print(format_specific_text(info.format_specific, 0));
}

Task<void> run_alloc(Call& call) {
  if (call.arguments.operands.empty()) call.fail_with_usage();
  Node& image = call.state.image_node();
  const std::uint64_t offset = call.size_operand(0);
  std::uint64_t count = call.arguments.operands.size() > 1 ? call.size_operand(1) : 512;
  const std::uint64_t size = image.size();
  count = offset >= size ? 0 : std::min(count, size - offset);
  std::uint64_t allocated = 0;
  for (std::uint64_t done = 0; done < count;) {
    const GuestRange rest{GuestOffset(offset + done), count - done};
    const std::pair<bool, std::uint64_t> run = co_await allocated_run(image, rest);
    if (run.first) allocated += run.second;
    done += run.second;
  }
  print(fmt::format("{}/{} bytes allocated at offset {}\n", allocated, count, size_text(offset)));
}

Task<void> run_map(Call& call) {
  Node& image = call.state.image_node();
  const std::uint64_t size = image.size();
  for (std::uint64_t start = 0; start < size;) {
    bool allocated = false;
    std::uint64_t end = start;
    while (end < size) {
      const GuestRange rest{GuestOffset(end), size - end};
      const std::pair<bool, std::uint64_t> run = co_await allocated_run(image, rest);
      if (end == start) allocated = run.first;
      if (run.first != allocated) break;
      end += run.second;
    }
    print(fmt::format("{} (0x{:x}) bytes {:>13} at offset {} (0x{:x})\n", size_text(end - start),
                      end - start, allocated ? "allocated" : "not allocated", size_text(start),
                      start));
    start = end;
  }
}

}  // namespace vise::tools
