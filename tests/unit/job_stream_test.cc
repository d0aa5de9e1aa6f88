#include "job/stream.h"

#include <gtest/gtest.h>

#include "copy/chain_source.h"
#include "graph/chain.h"
#include "job_fixture.h"

namespace vise {
namespace {

using test::JobTest;

struct Way {
  const char* codec;  // null: nothing is compressed
  bool guest_writes;
};

class JobStream : public JobTest, public testing::WithParamInterface<Way> {
 protected:
  JobStream() {
    const Way way = GetParam();
    const std::string codec = way.codec != nullptr ? way.codec : "zlib";
    const bool compressed = way.codec != nullptr;
    create("base", codec);
    create("mid", codec, "base");
    create("top", codec, "mid");
    Bytes& model = model_;
    fill(open("base", "none"), model, 1, compressed);
    fill(open("mid", "base"), model, 2, compressed);
    // Zeros of its own hide what the base has.
    std::unique_ptr<Child> root = attach(*graph_.find("mid"), true);
    const GuestRange zeroes{GuestOffset(10 * cluster), 30 * cluster};
    run(root->write_zeroes(zeroes, {.may_unmap = true}));
    std::memset(model.data() + zeroes.start.bytes(), 0, zeroes.length);
    run(root->detach());
    fill(open("top", "mid"), model, 3, compressed, 4);
    if (compressed) open_above("above", "compress", "top");
  }
  Node& device() { return *graph_.find(GetParam().codec != nullptr ? "above" : "top"); }

  // The job, beside the guest where there is one.
  void stream(Node* base) {
    // Without a guest the job's own rights must do.
    std::unique_ptr<Child> root = attach(device(), GetParam().guest_writes);
    StreamSettings wanted;
    wanted.job = settings("job");
    wanted.device = &device();
    wanted.base = base;
    start(run(make_stream_job(jobs_, std::move(wanted))));
    if (GetParam().guest_writes) run(guest(*root, model_, 4, 300));
    run(gone("job"));
    run(root->flush());
    run(root->detach());
  }

  Bytes model_ = Bytes(disk_size);
};

TEST_P(JobStream, TheWholeChainMovesIntoTheImage) {
  stream(nullptr);
  EXPECT_EQ(take_log(), "created running waiting pending COMPLETED concluded null");
  EXPECT_EQ(error_, "");
  Node& top = *graph_.find("top");
  EXPECT_EQ(backing_of(top), nullptr);
  EXPECT_EQ(graph_.nodes().size(), GetParam().codec != nullptr ? 7u : 6u);  // no filter is left
  EXPECT_EQ(content(top), model_);
  run(graph_.close_all());
  EXPECT_EQ(content(open("top")), model_);  // the header says it too
}

TEST_P(JobStream, ABaseStays) {
  stream(graph_.find("base"));
  EXPECT_EQ(error_, "");
  EXPECT_EQ(backing_of(*graph_.find("top")), graph_.find("base"));
  EXPECT_EQ(content(*graph_.find("top")), model_);
  run(graph_.close_all());
  Node& top = open("top");
  ASSERT_NE(backing_of(top), nullptr);
  EXPECT_EQ(backing_of(top)->protocol_filename(), path("base"));
  EXPECT_EQ(content(top), model_);
}

class JobStreamCompressed : public JobStream {};

TEST_P(JobStreamCompressed, WhatIsCompressedStaysSo) {
  stream(nullptr);
  Node& top = *graph_.find("top");
  const GuestRange whole{GuestOffset(0), disk_size};
  for (GuestRange rest = whole; !rest.empty();) {
    const BlockStatus status = run(block_status(top, rest, MapMode::allocation_only));
    EXPECT_TRUE(status.compressed || status.zero) << rest.start.bytes();
    rest = {rest.start + status.length, rest.length - status.length};
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, JobStreamCompressed,
                         testing::Values(Way{"zlib", false}, Way{"zstd", false}),
                         [](const auto& each) { return std::string(each.param.codec); });

INSTANTIATE_TEST_SUITE_P(Ways, JobStream,
                         testing::Values(Way{nullptr, false}, Way{nullptr, true},
                                         Way{"zlib", false}, Way{"zlib", true}, Way{"zstd", false},
                                         Way{"zstd", true}),
                         [](const auto& each) {
                           return std::string(each.param.codec != nullptr ? each.param.codec
                                                                          : "plain") +
                                  (each.param.guest_writes ? "_writing" : "_idle");
                         });

class JobStates : public JobTest {
 protected:
  JobStates() {
    create("base");
    create("top", "zlib", "base");
    fill(open("base"), model_, 1, false);
    open("top", "base");
  }
  std::shared_ptr<Job> stream(JobSettings wanted) {
    StreamSettings all;
    all.job = std::move(wanted);
    all.device = graph_.find("top");
    std::shared_ptr<Job> job = run(make_stream_job(jobs_, std::move(all)));
    start(job);
    return job;
  }
  Bytes model_ = Bytes(disk_size);
};

TEST_F(JobStates, VerbsAreRefusedInStatesThatDoNotTakeThem) {
  JobSettings wanted = settings("job");
  wanted.speed = 1;  // one chunk, then a long time nothing
  const std::shared_ptr<Job> job = stream(wanted);
  EXPECT_THROW(job->complete(), Error);
  EXPECT_THROW(job->finalize(), Error);
  EXPECT_THROW(job->dismiss(), Error);
  EXPECT_THROW(job->resume(), Error);
  job->pause();
  EXPECT_THROW(job->pause(), Error);
  EXPECT_THROW(job->cancel(Job::Cancel::soft), Error);
  job->resume();
  job->cancel(Job::Cancel::force);
  run(gone("job"));
  EXPECT_EQ(take_log(), "created running paused running aborting CANCELLED concluded null");
  EXPECT_EQ(content(*graph_.find("top")), model_);
  EXPECT_EQ(backing_of(*graph_.find("top")), graph_.find("base"));
}

TEST_F(JobStates, ABaseWithoutAPlainNameCannotBeStoredInTheHeader) {
  create("odd");
  create("mid", "zlib", "odd");
  create("over", "zlib", "mid");
  OpenRequest odd;
  odd.options.set("driver", "qcow2");
  odd.options.set("node-name", "odd");
  odd.options.set("file.driver", "raw");
  odd.options.set("file.file.driver", "file");
  odd.options.set("file.file.filename", path("odd"));
  graph_.adopt(run(graph_.open(std::move(odd))));
  open("mid", "odd");
  StreamSettings wanted;
  wanted.device = &open("over", "mid");
  wanted.base = graph_.find("odd");
  wanted.job = settings("job");
  try {
    run(make_stream_job(jobs_, wanted));
    FAIL() << "a name was found";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), EINVAL);
    EXPECT_NE(std::string_view(error.what()).find("'odd'"), std::string_view::npos);
  }
  wanted.backing_file = path("odd");
  start(run(make_stream_job(jobs_, wanted)));
  run(gone("job"));
  EXPECT_EQ(error_, "");
}

TEST_F(JobStates, APausedJobCopiesNothingUntilItIsResumed) {
  const std::shared_ptr<Job> job = stream(settings("job"));
  job->pause();
  for (int i = 0; i < 100; ++i) run(context_.loop().yield());
  EXPECT_EQ(job->done(), 0u);
  job->resume();
  run(gone("job"));
  EXPECT_EQ(take_log(), "created running paused running waiting pending COMPLETED concluded null");
}

TEST_F(JobStates, FinalizingAndDismissingByHand) {
  JobSettings wanted = settings("job");
  wanted.auto_finalize = wanted.auto_dismiss = false;
  const std::shared_ptr<Job> job = stream(wanted);
  run(until("job", Job::Status::pending));
  EXPECT_EQ(take_log(), "created running waiting pending PENDING");
  EXPECT_NE(backing_of(*graph_.find("top")), nullptr);
  job->finalize();
  run(until("job", Job::Status::concluded));
  EXPECT_EQ(take_log(), "COMPLETED concluded");
  EXPECT_EQ(backing_of(*graph_.find("top")), nullptr);
  job->dismiss();
  run(gone("job"));
  EXPECT_EQ(take_log(), "null");
}

TEST_F(JobStates, APendingJobCanStillBeCancelled) {
  JobSettings wanted = settings("job");
  wanted.auto_finalize = false;
  const std::shared_ptr<Job> job = stream(wanted);
  run(until("job", Job::Status::pending));
  job->cancel(Job::Cancel::soft);
  run(gone("job"));
  EXPECT_NE(backing_of(*graph_.find("top")), nullptr);
  EXPECT_EQ(content(*graph_.find("top")), model_);
}

TEST_F(JobStates, ANodeWorksForOneJobAtATime) {
  JobSettings wanted = settings("job");
  wanted.speed = 1;
  stream(wanted);
  EXPECT_THROW(jobs_.require_new_id("job"), Error);
  StreamSettings again;
  again.job = settings("other");
  again.device = graph_.find("top");
  EXPECT_THROW(run(make_stream_job(jobs_, std::move(again))), Error);
}

TEST_F(JobStates, CancellingAtAnyMomentLeavesTheContentAsItWas) {
  for (int moment = 0; moment < 60; ++moment) {
    const std::shared_ptr<Job> job = stream(settings("job"));
    for (int i = 0; i < moment; ++i) run(context_.loop().yield());
    if (jobs_.find("job") == nullptr || job->status() != Job::Status::running) break;
    job->cancel(Job::Cancel::force);
    run(gone("job"));
    ASSERT_EQ(content(*graph_.find("top")), model_) << moment;
    ASSERT_EQ(backing_of(*graph_.find("top")), graph_.find("base"));
  }
}

}  // namespace
}  // namespace vise
