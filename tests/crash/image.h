// The bytes of a file in memory, sparse and cheap to copy: thousands of states of one file share
// what they have in common.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace vise::crash {

class Image {
 public:
  std::uint64_t size() const { return size_; }  // bytes

  /// What lies beyond the end reads as zeros.
  void read(std::uint64_t offset, std::span<std::byte> data) const;
  /// Extends the file where it writes beyond the end.
  void write(std::uint64_t offset, std::span<const std::byte> data);
  void write_zeroes(std::uint64_t offset, std::uint64_t length);
  void resize(std::uint64_t size);

  /// Writes everything to a real file, for looking at it with other tools.
  void save(const std::string& filename) const;

 private:
  static constexpr std::uint64_t page_size = 4096;
  using Page = std::array<std::byte, page_size>;

  /// The page with that index, for writing: not shared with other images.
  Page& own_page(std::uint64_t index);

  std::vector<std::shared_ptr<Page>> pages_;  // null: zeros
  std::uint64_t size_ = 0;
};

}  // namespace vise::crash
