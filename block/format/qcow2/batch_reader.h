// Reads many tables of one cluster each, neighbours in one request, several requests in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "vise/child.h"
#include "vise/task.h"
#include "vise/types.h"

namespace vise::qcow2 {

class BatchReader {
 public:
  /// Called with the index of the table and its bytes, or with what went wrong. Tables come in no
  /// particular order.
  using Visit = std::function<void(std::size_t index, std::span<const std::byte> table)>;
  using Fail = std::function<void(std::size_t index, const std::string& error)>;

  /// `offsets` in ascending order make the requests large. Everything outlives the run.
  BatchReader(Child& file, std::uint64_t table_size, const std::vector<HostOffset>& offsets)
      : file_(file), table_size_(table_size), offsets_(offsets) {}

  /// What lies beyond the end of the file reads as zeros.
  Task<void> run(Visit visit, Fail fail);

 private:
  Task<void> work();

  Child& file_;
  std::uint64_t table_size_;
  const std::vector<HostOffset>& offsets_;
  Visit visit_;
  Fail fail_;
  std::size_t next_ = 0;
};

}  // namespace vise::qcow2
