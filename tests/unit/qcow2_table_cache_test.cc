// The cache of table slices: what is dropped when it is cleaned, and the timer that does so.
#include "format/qcow2/table_cache.h"

#include <gtest/gtest.h>

#include <chrono>
#include <vector>

#include "qcow2_file_fixture.h"
#include "util/periodic.h"

namespace vise::qcow2 {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t slice_size = 4096;

class TableCacheTest : public QcowFileTest {
 protected:
  TableCacheTest() { write_file(file(), std::vector<std::byte>(64 * slice_size)); }

  void load(TableCache& cache, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t i = first; i < first + count; ++i) {
      const TableCache::Ref slice = run(cache.get(HostOffset(i * slice_size)));
    }
  }

  Header header_;
  OverlapGuard guard_{header_, {}};
};

TEST_F(TableCacheTest, DropsWhatNobodyUsedSinceTheLastCleaning) {
  with_file([&](Child& child) {
    TableCache cache(child, slice_size, 1 << 20, {Event::l2_load, Event::l2_update}, guard_,
                     Metadata::active_l2);
    load(cache, 0, 10);
    cache.drop_unused();
    EXPECT_EQ(cache.slice_count(), 10u);  // all of them were used in this period
    load(cache, 3, 2);
    EXPECT_EQ(cache.drop_unused(), 8 * slice_size);
    EXPECT_EQ(cache.slice_count(), 2u);
    EXPECT_EQ(cache.drop_unused(), 2 * slice_size);
    EXPECT_EQ(cache.slice_count(), 0u);
  });
}

TEST_F(TableCacheTest, KeepsWhatIsDirtyOrInUse) {
  with_file([&](Child& child) {
    TableCache cache(child, slice_size, 1 << 20, {Event::l2_load, Event::l2_update}, guard_,
                     Metadata::active_l2);
    load(cache, 0, 10);
    TableCache::Ref held = run(cache.get(HostOffset(0)));
    TableCache::Ref dirty = run(cache.get(HostOffset(slice_size)));
    cache.mark_dirty(dirty);
    dirty = TableCache::Ref();
    cache.drop_unused();
    cache.drop_unused();
    EXPECT_EQ(cache.slice_count(), 2u);
    held = TableCache::Ref();
    run(cache.write(cache.dirty_images([](HostOffset) { return true; })));
    cache.drop_unused();
    EXPECT_EQ(cache.slice_count(), 0u);
  });
}

TEST_F(TableCacheTest, AWalkTakesAnEighthAndLeavesWhatOthersUse) {
  with_file([&](Child& child) {
    TableCache cache(child, slice_size, 32 * slice_size, {Event::l2_load, Event::l2_update}, guard_,
                     Metadata::active_l2);
    load(cache, 0, 10);
    for (unsigned i = 5; i < 30; ++i) {
      run(cache.get(HostOffset(i * slice_size), TableCache::Use::once));
      if (i == 12) run(cache.get(HostOffset(i * slice_size)));
    }
    EXPECT_EQ(cache.slice_count(), 10u + 1 + 4);
    EXPECT_TRUE(cache.try_get(HostOffset(9 * slice_size)));
    EXPECT_TRUE(cache.try_get(HostOffset(12 * slice_size)));
    EXPECT_FALSE(cache.try_get(HostOffset(13 * slice_size)));
    EXPECT_TRUE(cache.try_get(HostOffset(29 * slice_size)));
  });
}

TEST_F(TableCacheTest, ATimerCleansUntilItGoes) {
  with_file([&](Child& child) {
    TableCache cache(child, slice_size, 1 << 20, {Event::l2_load, Event::l2_update}, guard_,
                     Metadata::active_l2);
    load(cache, 0, 10);
    unsigned cleanings = 0;
    auto timer = std::make_unique<Periodic>(context_.loop(), milliseconds(2), [&] {
      cache.drop_unused();
      ++cleanings;
    });
    while (cleanings < 3) run(context_.loop().sleep(milliseconds(1)));
    EXPECT_EQ(cache.slice_count(), 0u);
    timer.reset();
    const unsigned before = cleanings;
    run(context_.loop().sleep(milliseconds(10)));
    EXPECT_EQ(cleanings, before);
  });
}

}  // namespace
}  // namespace vise::qcow2
