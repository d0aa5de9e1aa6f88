#include "tools/common/key_order.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace vise::tools {

namespace {

struct Rank {
  std::string_view key;
  int rank;
};

// From docs of the interface, sorted by rank; of two members with one rank, the one added last
// comes first.
constexpr std::array ranks = std::to_array<Rank>({
    {"compat", 16},
    {"icount", 18},
    {"flags", 20},
    {"vm-clock-nsec", 26},
    {"image-end-offset", 30},
    {"name", 39},
    {"active", 48},
    {"port", 61},
    {"compressed-clusters", 67},
    {"iters", 85},
    {"compression-type", 88},
    {"compressed", 90},
    {"cid", 105},
    {"lazy-refcounts", 107},
    {"date-sec", 111},
    {"bitmaps", 114},
    {"refcount-bits", 122},
    {"parent-cid", 147},
    {"uuid", 148},
    {"total-clusters", 169},
    {"offset", 180},
    {"corruptions", 181},
    {"image", 181},
    {"data-file", 182},
    {"corruptions-fixed", 203},
    {"check-errors", 204},
    {"children", 206},
    {"backing-filename-format", 206},
    {"host", 229},
    {"date-nsec", 230},
    {"encrypt.key-secret", 230},
    {"driver", 239},
    {"granularity", 241},
    {"required", 243},
    {"leaks", 246},
    {"create-type", 251},
    {"path", 253},
    {"snapshots", 263},
    {"key-offset", 264},
    {"leaks-fixed", 290},
    {"allocated-clusters", 304},
    {"virtual-size", 309},
    {"filename", 313},
    {"cluster-size", 316},
    {"size", 318},
    {"export", 326},
    {"fully-allocated", 328},
    {"format", 337},
    {"encrypt", 339},
    {"server", 340},
    {"actual-size", 351},
    {"format-specific", 354},
    {"data-file-raw", 354},
    {"full-backing-filename", 360},
    {"stripes", 379},
    {"slots", 387},
    {"vote-threshold", 393},
    {"vm-clock-sec", 397},
    {"encrypted", 413},
    {"type", 425},
    {"extents", 427},
    {"file", 463},
    {"backing-filename", 475},
    {"corrupt", 477},
    {"fragmented-clusters", 484},
    {"id", 486},
    {"vm-state-size", 494},
    {"info", 496},
    {"dirty-flag", 501},
    {"extended-l2", 503},
    {"data", 505},
    {"align", 509},
});
constexpr int unknown_rank = 1000;

int rank_of(std::string_view key) {
  const auto* match =
      std::find_if(ranks.begin(), ranks.end(), [&](const Rank& rank) { return rank.key == key; });
  return match == ranks.end() ? unknown_rank : match->rank;
}

Value::Dict sorted(Value::Dict dict) {
  struct Entry {
    int rank;
    int order;  // among entries of one rank
    Value::Member* member;
  };
  std::vector<Entry> entries;
  for (auto& member : dict) {
    const int rank = rank_of(member.first);
    const int index = static_cast<int>(entries.size());
    // The last added first, except among those we know nothing of.
    entries.push_back({rank, rank == unknown_rank ? index : -index, &member});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.rank, a.order) < std::pair(b.rank, b.order);
  });
  Value::Dict result;
  for (const Entry& entry : entries) {
    result.set(entry.member->first, in_printing_order(std::move(entry.member->second)));
  }
  return result;
}

}  // namespace

Value in_printing_order(Value value) {
  if (value.is_dict()) return sorted(std::move(value.as_dict()));
  if (value.is_list()) {
    for (Value& element : value.as_list()) element = in_printing_order(std::move(element));
  }
  return value;
}

}  // namespace vise::tools
