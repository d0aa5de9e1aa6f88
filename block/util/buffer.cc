// Aligned buffers: large ones from the arena, small ones from lists of each thread.
#include "vise/buffer.h"

#include <array>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "util/buffer_arena.h"
#include "util/sanitizer.h"
#include "vise/error.h"

namespace vise {

namespace {

constexpr std::size_t smallest = 4096;
constexpr std::size_t keep_bytes = 1u << 20;  // of small buffers, per thread
constexpr std::size_t classes = std::bit_width(BufferArena::smallest / smallest) - 1;

// Powers of two, so that a freed buffer fits the next request of about its size. Exact under
// AddressSanitizer, which then sees the first byte beyond.
std::size_t capacity_of(std::size_t size) {
  if (under_address_sanitizer) return size;
  if (size > BufferArena::largest) return (size + Buffer::alignment - 1) & ~(Buffer::alignment - 1);
  return std::bit_ceil(size < smallest ? smallest : size);
}

bool is_from_arena(std::size_t capacity) {
  return !under_address_sanitizer && capacity >= BufferArena::smallest &&
         capacity <= BufferArena::largest;
}

// Buffers that live longer than the pool of their thread (in statics) go straight to the heap.
thread_local constinit bool small_buffers_closed = false;

struct SmallBuffers {
  std::array<std::vector<std::byte*>, classes> free;
  std::size_t bytes = 0;
  ~SmallBuffers() {
    small_buffers_closed = true;
    for (auto& list : free) {
      for (std::byte* data : list) std::free(data);
    }
  }
};

thread_local SmallBuffers small_buffers;  // per thread so that workers need no lock

std::size_t class_of(std::size_t capacity) { return std::bit_width(capacity / smallest) - 1; }

bool is_kept(std::size_t capacity) {
  return !under_address_sanitizer && capacity < BufferArena::smallest && !small_buffers_closed;
}

}  // namespace

Buffer::Buffer(std::size_t size) : size_(size) {
  if (size == 0) return;
  const std::size_t capacity = capacity_of(size);
  if (is_from_arena(capacity)) {
    data_ = BufferArena::shared().allocate(capacity);
    if (data_ == nullptr) throw Error::system_error(ENOMEM);
    return;
  }
  if (is_kept(capacity)) {
    auto& list = small_buffers.free[class_of(capacity)];
    if (!list.empty()) {
      data_ = list.back();
      list.pop_back();
      small_buffers.bytes -= capacity;
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
  if (is_from_arena(capacity)) {
    BufferArena::shared().free(data_, capacity);
    return;
  }
  if (is_kept(capacity) && small_buffers.bytes + capacity <= keep_bytes) {
    small_buffers.free[class_of(capacity)].push_back(data_);
    small_buffers.bytes += capacity;
    return;
  }
  std::free(data_);
}

}  // namespace vise
