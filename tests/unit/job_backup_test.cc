#include "job/backup.h"

#include <gtest/gtest.h>

#include "copy/chain_source.h"
#include "graph/bitmaps.h"
#include "job_fixture.h"

namespace vise {
namespace {

using test::JobTest;
using Sync = qapi::MirrorSyncMode;
using Mode = qapi::BitmapSyncMode;

struct Way {
  const char* codec;  // of the target; null: not compressed
  bool guest_writes;
};

class JobBackup : public JobTest, public testing::WithParamInterface<Way> {
 protected:
  JobBackup() {
    const Way way = GetParam();
    create("base", "zstd");
    create("disk", "zstd", "base");
    fill(open("base"), model_, 1, true);
    fill(open("disk", "base"), model_, 2, true);
    create("copy", way.codec != nullptr ? way.codec : "zlib");
    open("copy");
  }

  BackupSettings wanted(const std::string& id, Sync sync, const std::string& target) {
    BackupSettings result;
    result.job = settings(id);
    result.device = graph_.find("disk");
    result.target = graph_.find(target);
    result.sync = sync;
    result.compress = GetParam().codec != nullptr;
    return result;
  }
  void backup(BackupSettings how) {
    std::unique_ptr<Child> root = attach(*how.device, true);
    start(run(make_backup_job(jobs_, std::move(how))));
    if (GetParam().guest_writes) run(guest(*root, model_, 4, 200));
    run(gone("job"));
    run(root->detach());
  }
  DirtyBitmap& bits(const std::string& name) { return get_bitmap(*graph_.find("disk"), name).bits; }

  Bytes model_ = Bytes(disk_size);
};

TEST_P(JobBackup, ShowsTheInstantOfItsStart) {
  const Bytes then = model_;
  backup(wanted("job", Sync::full, "copy"));
  EXPECT_EQ(take_log(), "created running waiting pending COMPLETED concluded null");
  EXPECT_EQ(error_, "");
  EXPECT_EQ(content(*graph_.find("copy")), then);
  EXPECT_EQ(content(*graph_.find("disk")), model_);
}

TEST_P(JobBackup, TheTopAloneShowsThatInstantAboveTheSameBase) {
  const Bytes then = model_;
  create("over", "zlib", "base");
  open("over", "base");
  backup(wanted("job", Sync::top, "over"));
  EXPECT_EQ(error_, "");
  EXPECT_EQ(content(*graph_.find("over")), then);
}

TEST_P(JobBackup, IncrementsTellWhatChangedSince) {
  Node& disk = *graph_.find("disk");
  add_bitmap(disk, {.name = "b"});
  backup(wanted("job", Sync::full, "copy"));
  fill(disk, model_, 9, false, 3);
  const Bytes then = model_;
  create("increment", "zlib", "copy");
  open("increment", "copy");
  BackupSettings second = wanted("job", Sync::incremental, "increment");
  second.bitmap = "b";
  // The first copy was taken before anything the bitmap tells of was written.
  backup(std::move(second));
  EXPECT_EQ(error_, "");
  EXPECT_EQ(content(*graph_.find("increment")), then);
  if (!GetParam().guest_writes) {
    EXPECT_EQ(bits("b").dirty_bytes(), 0u);
  }
}

TEST_P(JobBackup, ZeroesHideWhatTheBackingImageHas) {
  Node& disk = *graph_.find("disk");
  add_bitmap(disk, {.name = "b"});
  backup(wanted("job", Sync::full, "copy"));
  std::unique_ptr<Child> root = attach(disk, true);
  const GuestRange half{GuestOffset(0), disk_size / cluster / 2 * cluster};
  run(root->write_zeroes(half, {.may_unmap = true}));
  std::memset(model_.data(), 0, half.length);
  run(root->detach());
  const Bytes then = model_;
  create("increment", "zlib", "copy");
  open("increment", "none");  // as clients do, who open the chain only to restore it
  BackupSettings second = wanted("job", Sync::incremental, "increment");
  second.bitmap = "b";
  backup(std::move(second));
  EXPECT_EQ(error_, "");
  run(graph_.close_all());
  EXPECT_EQ(content(open("increment")), then);
}

TEST_P(JobBackup, OnlyWhatIsOverwrittenIsCopiedWithSyncNone) {
  create("fleece", "zlib", {});
  open("fleece");
  const Bytes then = model_;
  std::unique_ptr<Child> root = attach(*graph_.find("disk"), true);
  start(run(make_backup_job(jobs_, wanted("job", Sync::none, "fleece"))));
  run(guest(*root, model_, 5, 40));
  jobs_.find("job")->cancel(Job::Cancel::force);
  run(gone("job"));
  run(root->detach());
  const Bytes copied = content(*graph_.find("fleece"));
  for (std::uint64_t at = 0; at < disk_size; at += 512) {
    const auto same = [&](const Bytes& a, const Bytes& b) {
      return std::equal(a.begin() + at, a.begin() + at + 512, b.begin() + at);
    };
    EXPECT_TRUE(same(copied, then) || same(model_, then)) << at;
  }
}

TEST_P(JobBackup, ACancelledOneLeavesTheBitmapAsItWas) {
  Node& disk = *graph_.find("disk");
  add_bitmap(disk, {.name = "b"});
  fill(disk, model_, 9, false, 3);
  const std::uint64_t before = bits("b").dirty_bytes();
  BackupSettings how = wanted("job", Sync::incremental, "copy");
  how.bitmap = "b";
  how.job.speed = 1;
  start(run(make_backup_job(jobs_, std::move(how))));
  EXPECT_THROW(clear_bitmap(disk, "b"), Error);  // busy
  EXPECT_THROW(attach(disk, true), Error);       // writers must come through the filter
  Node* filter = nullptr;
  for (const Child* edge : disk.parents()) {
    if (edge->parent() != nullptr) filter = edge->parent();
  }
  ASSERT_NE(filter, nullptr);
  fill(*filter, model_, 10, false, 2);
  jobs_.find("job")->cancel(Job::Cancel::force);
  run(gone("job"));
  EXPECT_GT(bits("b").dirty_bytes(), before);
  clear_bitmap(disk, "b");
}

TEST_P(JobBackup, BadCombinationsOfModesAreRefused) {
  Node& disk = *graph_.find("disk");
  add_bitmap(disk, {.name = "b"});
  struct Case {
    Sync sync;
    bool bitmap;
    std::optional<Mode> mode;
  };
  for (const Case& c :
       {Case{Sync::full, true, {}}, Case{Sync::incremental, false, {}},
        Case{Sync::bitmap, false, {}}, Case{Sync::none, true, Mode::always},
        Case{Sync::full, true, Mode::never}, Case{Sync::incremental, true, Mode::never},
        Case{Sync::bitmap, true, {}}, Case{Sync::full, false, Mode::on_success}}) {
    BackupSettings how = wanted("job", c.sync, "copy");
    if (c.bitmap) how.bitmap = "b";
    how.bitmap_mode = c.mode;
    EXPECT_THROW(run(make_backup_job(jobs_, std::move(how))), Error);
  }
  EXPECT_EQ(graph_.find("disk")->parents().size(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Ways, JobBackup,
                         testing::Values(Way{nullptr, false}, Way{nullptr, true},
                                         Way{"zlib", false}, Way{"zlib", true}, Way{"zstd", false},
                                         Way{"zstd", true}),
                         [](const auto& each) {
                           return std::string(each.param.codec != nullptr ? each.param.codec
                                                                          : "plain") +
                                  (each.param.guest_writes ? "_writing" : "_idle");
                         });

}  // namespace
}  // namespace vise
