// Which contents are allowed follows from three moments of each change: when it was sent, when it
// ended, and since when a flush (or FUA) has made it stable.
#include "crash/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace vise::crash {

namespace {

std::uint64_t mix(std::uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// A few words that do not compress, then one that is repeated.
void fill_sector(std::byte* data, std::uint64_t sector, Content content) {
  if (content == 0) {
    std::memset(data, 0, sector_size);
    return;
  }
  std::array<std::uint64_t, sector_size / 8> words;
  const std::uint64_t seed = mix(content * 0x10001 + sector);
  const std::size_t random_words = std::min<std::size_t>(mix(content) % 80, words.size());
  words.fill(seed);
  for (std::size_t i = 1; i < random_words; ++i) words[i] = mix(seed + i);
  std::memcpy(data, words.data(), sector_size);
}

}  // namespace

void fill(std::span<std::byte> data, std::uint64_t sector, Content content) {
  for (std::size_t done = 0; done < data.size(); done += sector_size) {
    fill_sector(data.data() + done, sector++, content);
  }
}

Model::Model(Clock& clock, std::uint64_t size)
    : clock_(clock), sectors_(size / sector_size), initial_(size / sector_size) {}

void Model::resume(const Model& before, std::uint64_t offset, std::span<const std::byte> data,
                   std::uint64_t time) {
  std::array<std::byte, sector_size> expected;
  for (std::size_t done = 0; done < data.size(); done += sector_size) {
    const std::uint64_t sector = (offset + done) / sector_size;
    for (const Content content : before.allowed(sector, after_power_failure(time))) {
      fill_sector(expected.data(), sector, content);
      if (std::memcmp(expected.data(), data.data() + done, sector_size) == 0) {
        initial_[sector] = content;
      }
    }
  }
  contents_ = std::max(contents_, before.contents_);
}

Model::Request Model::begin(std::uint64_t offset, std::uint64_t length, Content content,
                            Effect effect) {
  const Request request = changes_.size();
  changes_.push_back({.content = content, .effect = effect, .sent = clock_.tick()});
  for (std::uint64_t s = offset / sector_size; s < (offset + length) / sector_size; ++s) {
    sectors_[s].push_back(static_cast<std::uint32_t>(request));
  }
  return request;
}

void Model::complete(Request request, bool fua) {
  Change& change = changes_[request];
  change.ended = change.completed = clock_.tick();
  if (fua) change.stable = change.completed;
}

void Model::fail(Request request) { changes_[request].ended = clock_.tick(); }

void Model::complete_flush(std::uint64_t sent) {
  const std::uint64_t now = clock_.tick();
  for (std::size_t i = first_unstable_; i < changes_.size(); ++i) {
    if (changes_[i].completed < sent) changes_[i].stable = std::min(changes_[i].stable, now);
  }
  while (first_unstable_ < changes_.size() && (changes_[first_unstable_].stable != never ||
                                               (changes_[first_unstable_].ended != never &&
                                                changes_[first_unstable_].completed == never))) {
    ++first_unstable_;
  }
}

std::string Model::compare(std::uint64_t offset, std::span<const std::byte> data,
                           std::uint64_t time) const {
  return compare(offset, data, after_power_failure(time));
}

Model::View Model::after_power_failure(std::uint64_t time) {
  if (time == never) return {never, never, &Change::completed};
  return {time, time, &Change::stable};
}

std::string Model::compare_live(std::uint64_t offset, std::span<const std::byte> data,
                                std::uint64_t sent) const {
  return compare(offset, data, {never, sent, &Change::completed});
}

std::string Model::compare(std::uint64_t offset, std::span<const std::byte> data, View view) const {
  std::array<std::byte, sector_size> expected;
  for (std::size_t done = 0; done < data.size(); done += sector_size) {
    const std::uint64_t sector = (offset + done) / sector_size;
    const std::vector<Content> contents = allowed(sector, view);
    const bool found = std::any_of(contents.begin(), contents.end(), [&](Content content) {
      fill_sector(expected.data(), sector, content);
      return std::memcmp(expected.data(), data.data() + done, sector_size) == 0;
    });
    if (found) continue;
    std::string has = "what nobody wrote there";
    for (Content content = 0; content <= contents_; ++content) {
      fill_sector(expected.data(), sector, content);
      if (std::memcmp(expected.data(), data.data() + done, sector_size) == 0) {
        has = fmt::format("content {}", content);
      }
    }
    std::string wanted;
    for (const Content content : contents) wanted += fmt::format(" {}", content);
    return fmt::format("guest offset {:#x} has {}, allowed:{}", sector * sector_size, has, wanted);
  }
  return {};
}

std::vector<Content> Model::allowed(std::uint64_t sector, const View& view) const {
  // A change is gone for sure when one that is there for sure was sent after it had ended.
  std::uint64_t overwritten = 0;  // changes ended before this moment are gone
  for (const std::uint32_t index : sectors_[sector]) {
    const Change& change = changes_[index];
    if (change.effect == Effect::surely && change.*view.when_fixed < view.fixed) {
      overwritten = std::max(overwritten, change.sent);
    }
  }
  std::vector<Content> contents;
  if (overwritten == 0) contents.push_back(initial_[sector]);
  for (const std::uint32_t index : sectors_[sector]) {
    const Change& change = changes_[index];
    if (change.sent < view.sent_before && change.ended >= overwritten) {
      contents.push_back(change.content);
    }
  }
  return contents;
}

}  // namespace vise::crash
