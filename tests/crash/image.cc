// Pages are shared between copies until one of them writes.
#include "crash/image.h"

#include <algorithm>
#include <cstring>
#include <fstream>

namespace vise::crash {

void Image::read(std::uint64_t offset, std::span<std::byte> data) const {
  while (!data.empty()) {
    const std::uint64_t in_page = offset % page_size;
    const std::size_t length = std::min<std::uint64_t>(page_size - in_page, data.size());
    const std::uint64_t index = offset / page_size;
    if (index < pages_.size() && pages_[index]) {
      std::memcpy(data.data(), pages_[index]->data() + in_page, length);
    } else {
      std::memset(data.data(), 0, length);
    }
    offset += length;
    data = data.subspan(length);
  }
}

void Image::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset + data.size() > size_) resize(offset + data.size());
  while (!data.empty()) {
    const std::uint64_t in_page = offset % page_size;
    const std::size_t length = std::min<std::uint64_t>(page_size - in_page, data.size());
    std::memcpy(own_page(offset / page_size).data() + in_page, data.data(), length);
    offset += length;
    data = data.subspan(length);
  }
}

void Image::write_zeroes(std::uint64_t offset, std::uint64_t length) {
  write(offset, std::vector<std::byte>(length));
}

void Image::resize(std::uint64_t size) {
  if (size < size_) {  // what a later extension uncovers must read as zeros
    const std::uint64_t in_page = size % page_size;
    if (in_page != 0 && pages_[size / page_size]) {
      Page& page = own_page(size / page_size);
      std::fill(page.begin() + static_cast<std::ptrdiff_t>(in_page), page.end(), std::byte{0});
    }
  }
  pages_.resize((size + page_size - 1) / page_size);
  size_ = size;
}

void Image::save(const std::string& filename) const {
  std::vector<std::byte> bytes(size_);
  read(0, bytes);
  std::ofstream(filename, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

Image::Page& Image::own_page(std::uint64_t index) {
  std::shared_ptr<Page>& page = pages_[index];
  if (!page) {
    page = std::make_shared<Page>(Page{});
  } else if (page.use_count() > 1) {
    page = std::make_shared<Page>(*page);
  }
  return *page;
}

}  // namespace vise::crash
