// transaction: several actions that all happen, or none.
#include <fmt/format.h>

#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "job/job_filter.h"
#include "monitor/bitmap_actions.h"
#include "monitor/commands.h"
#include "monitor/job_settings.h"
#include "monitor/snapshot_actions.h"
#include "vise/error.h"

namespace vise {

namespace {

using Kind = qapi::TransactionActionKind;

class AbortAction final : public Action {
 public:
  Task<void> prepare() override {
    throw Error(ECANCELED, "Transaction aborted using Abort action");
    co_return;
  }
};

// The job exists from prepare() on, and starts with commit().
class BackupAction final : public Action {
 public:
  BackupAction(Services& services, qapi::BlockdevBackup wanted, std::shared_ptr<JobGroup> group)
      : services_(services), wanted_(std::move(wanted)), group_(std::move(group)) {}

  Task<void> prepare() override {
    BackupSettings settings = backup_settings(services_, wanted_);
    std::shared_ptr<Job> job = co_await make_backup_job(services_.jobs(), std::move(settings));
    job_ = job;
    services_.jobs().add(job_, group_);
  }
  Task<void> commit() override {
    services_.jobs().start(job_);
    co_return;
  }
  Task<void> roll_back() override { return services_.jobs().discard(job_); }

 private:
  Services& services_;
  const qapi::BlockdevBackup wanted_;
  const std::shared_ptr<JobGroup> group_;
  std::shared_ptr<Job> job_;
};

template <class Wrapper>
auto& data_of(qapi::TransactionAction& action) {
  return std::get<Wrapper>(action.branch).data;
}

std::unique_ptr<Action> make_action(Services& services, qapi::TransactionAction& action,
                                    const std::shared_ptr<JobGroup>& group) {
  switch (action.type) {
    case Kind::abort:
      return std::make_unique<AbortAction>();
    case Kind::block_dirty_bitmap_add:
      return add_bitmap_action(services, data_of<qapi::BlockDirtyBitmapAddWrapper>(action));
    case Kind::block_dirty_bitmap_remove:
      return remove_bitmap_action(services, data_of<qapi::BlockDirtyBitmapWrapper>(action));
    case Kind::block_dirty_bitmap_clear:
      return clear_bitmap_action(services, data_of<qapi::BlockDirtyBitmapWrapper>(action));
    case Kind::block_dirty_bitmap_enable:
      return record_bitmap_action(services, data_of<qapi::BlockDirtyBitmapWrapper>(action),
                                  Recording::on);
    case Kind::block_dirty_bitmap_disable:
      return record_bitmap_action(services, data_of<qapi::BlockDirtyBitmapWrapper>(action),
                                  Recording::off);
    case Kind::block_dirty_bitmap_merge:
      return merge_bitmap_action(services, data_of<qapi::BlockDirtyBitmapMergeWrapper>(action));
    case Kind::blockdev_backup:
      return std::make_unique<BackupAction>(
          services, std::move(data_of<qapi::BlockdevBackupWrapper>(action)), group);
    case Kind::blockdev_snapshot:
      return snapshot_action(services, data_of<qapi::BlockdevSnapshotWrapper>(action));
    case Kind::blockdev_snapshot_sync:
      return snapshot_sync_action(services, data_of<qapi::BlockdevSnapshotSyncWrapper>(action));
    case Kind::blockdev_snapshot_internal_sync:
      return snapshot_internal_action(services,
                                      data_of<qapi::BlockdevSnapshotInternalWrapper>(action));
  }
  throw Error(EINVAL, "Unknown action");
}

void check_mode(const qapi::TransactionArguments& arguments, bool grouped) {
  if (!grouped) return;
  for (const qapi::TransactionAction& action : arguments.actions) {
    if (action.type == Kind::blockdev_backup) continue;
    throw Error(EINVAL, fmt::format("Action '{}' does not support transaction property "
                                    "completion-mode = grouped",
                                    to_string(action.type)));
  }
}

// All that is written to stands still, so that everything happens at one instant.
class StandStill {
 public:
  Task<void> begin(Graph& graph) {
    std::vector<std::shared_ptr<Node>> nodes;
    for (Node* node : graph.nodes()) {
      if (node->children().empty()) nodes.push_back(node->shared_from_this());
    }
    for (std::shared_ptr<Node>& node : nodes) {
      co_await node->drain_begin();
      nodes_.push_back(std::move(node));
    }
  }
  void end() {
    for (const auto& node : nodes_) node->drain_end();
    nodes_.clear();
  }

 private:
  std::vector<std::shared_ptr<Node>> nodes_;
};

// Rolled back in the opposite order.
Task<void> run_all(Services& services, qapi::TransactionArguments& arguments,
                   const std::shared_ptr<JobGroup>& group) {
  std::vector<std::unique_ptr<Action>> done;
  std::exception_ptr failure;
  try {
    for (qapi::TransactionAction& wanted : arguments.actions) {
      std::unique_ptr<Action> action = make_action(services, wanted, group);
      co_await action->prepare();
      done.push_back(std::move(action));
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) {
    for (const auto& action : done) {
      try {
        co_await action->commit();
      } catch (...) {
        if (!failure) failure = std::current_exception();
      }
    }
  } else {
    while (!done.empty()) {
      try {
        co_await done.back()->roll_back();
      } catch (const Error&) {
        // What failed first is what is told.
      }
      done.pop_back();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

Task<void> transaction(Services& services, qapi::TransactionArguments arguments) {
  const bool grouped = arguments.properties &&
                       arguments.properties->completion_mode == qapi::ActionCompletionMode::grouped;
  check_mode(arguments, grouped);
  const std::shared_ptr<JobGroup> group = grouped ? std::make_shared<JobGroup>() : nullptr;
  StandStill still;
  std::exception_ptr failure;
  try {
    co_await still.begin(services.graph());
    co_await run_all(services, arguments, group);
  } catch (...) {
    failure = std::current_exception();
  }
  still.end();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

void add_transaction_commands(CommandTable& commands) {
  commands.add<qapi::command::transaction, transaction>();
}

}  // namespace vise
