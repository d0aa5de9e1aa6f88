// Aligned buffers and the pool they return to.
#include "vise/buffer.h"

#include <array>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "util/sanitizer.h"
#include "vise/error.h"

namespace vise {

namespace {

constexpr std::size_t smallest = 4096;
constexpr std::size_t largest = 4u << 20;      // bigger buffers are not kept
constexpr std::size_t keep_bytes = 32u << 20;  // per thread; what a bulk copy has in flight
constexpr std::size_t classes = std::bit_width(largest / smallest);

// Powers of two, so that a freed buffer fits the next request of about its size. Exact under
// AddressSanitizer, which then sees the first byte beyond.
std::size_t capacity_of(std::size_t size) {
  if (under_address_sanitizer) return size;
  if (size > largest) return (size + Buffer::alignment - 1) & ~(Buffer::alignment - 1);
  return std::bit_ceil(size < smallest ? smallest : size);
}

// Buffers that live longer than the pool of their thread (in statics) go straight to the heap.
thread_local constinit bool buffer_pool_closed = false;

struct BufferPool {
  std::array<std::vector<std::byte*>, classes> free;
  std::size_t bytes = 0;
  ~BufferPool() {
    buffer_pool_closed = true;
    for (auto& list : free) {
      for (std::byte* data : list) std::free(data);
    }
  }
};

thread_local BufferPool buffer_pool;  // per thread so that workers need no lock

std::size_t class_of(std::size_t capacity) { return std::bit_width(capacity / smallest) - 1; }

bool is_pooled(std::size_t capacity) {
  return !under_address_sanitizer && capacity <= largest && !buffer_pool_closed;
}

}  // namespace

Buffer::Buffer(std::size_t size) : size_(size) {
  if (size == 0) return;
  const std::size_t capacity = capacity_of(size);
  if (is_pooled(capacity)) {
    auto& list = buffer_pool.free[class_of(capacity)];
    if (!list.empty()) {
      data_ = list.back();
      list.pop_back();
      buffer_pool.bytes -= capacity;
      return;
    }
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, capacity) != 0) throw Error::system_error(ENOMEM);
  data_ = static_cast<std::byte*>(memory);
}

Buffer Buffer::zeroed(std::size_t size) {
  Buffer buffer(size);
  if (size > 0) std::memset(buffer.data_, 0, size);
  return buffer;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  return *this;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  const std::size_t capacity = capacity_of(size_);
  if (is_pooled(capacity) && buffer_pool.bytes + capacity <= keep_bytes) {
    buffer_pool.free[class_of(capacity)].push_back(data_);
    buffer_pool.bytes += capacity;
    return;
  }
  std::free(data_);
}

}  // namespace vise
