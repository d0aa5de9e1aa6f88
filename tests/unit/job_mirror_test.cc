#include "job/mirror.h"

#include <gtest/gtest.h>

#include "copy/chain_source.h"
#include "graph/chain.h"
#include "job/commit.h"
#include "job_fixture.h"

namespace vise {
namespace {

using test::JobTest;
using Mode = qapi::MirrorCopyMode;

struct Way {
  const char* name;
  bool compressed;
  bool guest_writes;
  Mode mode = Mode::background;
};

class JobMirror : public JobTest, public testing::WithParamInterface<Way> {
 protected:
  JobMirror() {
    create("base", "zstd");
    create("mid", "zstd", "base");
    create("top", "zstd", "mid");
    const bool compressed = GetParam().compressed;
    fill(open("base"), model_, 1, compressed);
    fill(open("mid", "base"), model_, 2, compressed);
    fill(open("top", "mid"), model_, 3, compressed, 4);
  }

  // Runs until the job is ready, lets the guest go on, completes.
  void run_and_complete(std::shared_ptr<Job> job, Child& root) {
    start(std::move(job));
    if (GetParam().guest_writes) run(guest(root, model_, 4, 150));
    run(until("job", Job::Status::ready));
    if (GetParam().guest_writes) run(guest(root, model_, 5, 50));
    jobs_.find("job")->complete();
    run(gone("job"));
    EXPECT_EQ(error_, "");
    if (GetParam().guest_writes) run(guest(root, model_, 6, 20));  // above the target by now
    run(root.flush());
  }

  Bytes model_ = Bytes(disk_size);
};

TEST_P(JobMirror, TheTargetTakesThePlaceOfTheNode) {
  create("copy", "zstd");
  Node& copy = open("copy");
  Node& target = GetParam().compressed ? open_above("target", "compress", "copy") : copy;
  MirrorSettings wanted;
  wanted.job = settings("job");
  wanted.device = graph_.find("top");
  wanted.target = &target;
  wanted.copy_mode = GetParam().mode;
  std::unique_ptr<Child> root = attach(*wanted.device, true);
  run_and_complete(run(make_mirror_job(jobs_, std::move(wanted))), *root);
  EXPECT_EQ(&root->node(), &target);
  EXPECT_EQ(take_log(), "created running ready READY waiting pending COMPLETED concluded null");
  run(root->detach());
  EXPECT_EQ(content(target), model_);
}

TEST_P(JobMirror, ACopyThatIsNotCompletedStaysACopy) {
  create("copy", "zstd");
  MirrorSettings wanted;
  wanted.job = settings("job");
  wanted.device = graph_.find("top");
  wanted.target = &open("copy");
  wanted.copy_mode = GetParam().mode;
  std::unique_ptr<Child> root = attach(*wanted.device, true);
  start(run(make_mirror_job(jobs_, std::move(wanted))));
  if (GetParam().guest_writes) run(guest(*root, model_, 4, 100));
  run(until("job", Job::Status::ready));
  jobs_.find("job")->cancel(Job::Cancel::soft);
  run(gone("job"));
  EXPECT_EQ(error_, "");
  EXPECT_EQ(&root->node(), graph_.find("top"));
  run(root->detach());
  EXPECT_EQ(content(*graph_.find("copy")), model_);
}

TEST_P(JobMirror, TheActiveImageIsCommitted) {
  MirrorSettings wanted;
  wanted.job = settings("job");
  wanted.device = graph_.find("top");
  wanted.target = graph_.find("base");
  wanted.purpose = MirrorSettings::Purpose::commit;
  wanted.copy_mode = GetParam().mode;
  std::unique_ptr<Child> root = attach(*wanted.device, true);
  run_and_complete(run(make_mirror_job(jobs_, std::move(wanted))), *root);
  EXPECT_EQ(&root->node(), graph_.find("base"));
  run(root->detach());
  EXPECT_EQ(content(*graph_.find("base")), model_);
}

TEST_P(JobMirror, AnImageInBetweenIsCommitted) {
  CommitSettings wanted;
  wanted.job = settings("job");
  wanted.top = graph_.find("mid");
  wanted.base = graph_.find("base");
  std::unique_ptr<Child> root = attach(*graph_.find("top"), true);
  start(run(make_commit_job(jobs_, std::move(wanted))));
  if (GetParam().guest_writes) run(guest(*root, model_, 4, 150));
  run(gone("job"));
  run(root->flush());
  run(root->detach());
  EXPECT_EQ(error_, "");
  EXPECT_EQ(take_log(), "created running waiting pending COMPLETED concluded null");
  EXPECT_EQ(backing_of(*graph_.find("top")), graph_.find("base"));
  EXPECT_EQ(content(*graph_.find("top")), model_);
  run(graph_.close_all());
  Node& top = open("top");
  EXPECT_EQ(backing_of(top)->protocol_filename(), path("base"));
  EXPECT_EQ(content(top), model_);
}

INSTANTIATE_TEST_SUITE_P(
    Ways, JobMirror,
    testing::Values(Way{"plain_idle", false, false}, Way{"plain_writing", false, true},
                    Way{"compressed_writing", true, true},
                    Way{"blocking_writing", false, true, Mode::write_blocking}),
    [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace vise
