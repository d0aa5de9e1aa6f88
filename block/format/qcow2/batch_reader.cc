#include "format/qcow2/batch_reader.h"

#include <algorithm>
#include <utility>

#include "format/qcow2/metadata_io.h"
#include "vise/buffer.h"
#include "vise/error.h"
#include "vise/sync.h"

namespace vise::qcow2 {
namespace {

// Small enough for the buffers of all reads in flight to stay in the processor's cache.
constexpr std::uint64_t largest_read = 256 << 10;
constexpr unsigned reads_in_flight = 4;

}  // namespace

Task<void> BatchReader::run(Visit visit, Fail fail) {
  visit_ = std::move(visit);
  fail_ = std::move(fail);
  TaskScope scope;
  for (unsigned i = 0; i < reads_in_flight; ++i) scope.spawn(work());
  co_await scope.join();
}

Task<void> BatchReader::work() {
  const std::size_t most = std::max<std::uint64_t>(1, largest_read / table_size_);
  Buffer buffer;
  while (next_ < offsets_.size()) {
    const std::size_t first = next_;
    std::size_t end = first + 1;
    while (end < offsets_.size() && end - first < most &&
           offsets_[end] == offsets_[end - 1] + table_size_) {
      ++end;
    }
    next_ = end;
    const std::size_t length = (end - first) * table_size_;
    if (buffer.size() < length) buffer = Buffer(most * table_size_);
    std::string error;
    try {
      co_await read_zero_extended(file_, offsets_[first], buffer.first(length));
    } catch (const Error& e) {
      if (e.code() == ECANCELED) throw;
      error = e.what();
    }
    for (std::size_t i = first; i < end; ++i) {
      if (error.empty()) {
        visit_(i, buffer.span().subspan((i - first) * table_size_, table_size_));
      } else {
        fail_(i, error);
      }
    }
  }
}

}  // namespace vise::qcow2
