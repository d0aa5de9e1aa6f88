#include "job/create.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "graph/file_names.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"

namespace vise {

namespace {

// As `create -o` spells them.
Value::Dict creation_options(const Value::Dict& options) {
  Value::Dict result;
  for (const auto& [name, value] : options) {
    if (name == "version") {
      result.set("compat", value == Value("v2") ? "0.10" : "1.1");
      continue;
    }
    std::string spelled = name;
    std::ranges::replace(spelled, '-', '_');
    result.set(spelled, value);
  }
  return result;
}

// By which the image finds its data file again: a name that says all of it.
std::string data_file_name(const Node& node) {
  std::string name = node.filename();
  const bool is_file = node.type().kind == DriverKind::protocol || node.type().name == "raw";
  if (!is_file || !protocol_prefix(name).empty()) {
    throw Error(EINVAL, fmt::format("Node '{}' cannot be a data file, since the image could not "
                                    "find it by a file name: '{}' is a '{}' node",
                                    node.name(), name, node.type().name));
  }
  return name;
}

class CreateJob final : public Job {
 public:
  CreateJob(EventBus& events, Graph& graph, const DriverType& driver, JobSettings settings,
            Value::Dict options)
      : Job(events, qapi::JobType::create, std::move(settings)),
        graph_(graph),
        driver_(driver),
        options_(std::move(options)) {
    set_total(1);
  }

  bool is_block_job() const override { return false; }

 protected:
  Task<void> run() override {
    CreateRequest request{.graph = graph_, .filename = {}, .size = 0};
    if (const auto name = options_.take("filename")) request.filename = name->as_string();
    if (const auto size = options_.take("size")) request.size = size->as_uint();
    std::optional<Value> file = options_.take("file");
    std::optional<Value> data_file = options_.take("data-file");
    request.options = creation_options(options_);
    std::exception_ptr failure;
    try {
      if (file) co_await open_node(std::move(*file), "file.", request.file);
      if (data_file) {
        co_await open_node(std::move(*data_file), "data-file.", request.data_file);
        request.options.set("data_file", data_file_name(*request.data_file));
      }
      co_await driver_.create(request);
    } catch (...) {
      failure = std::current_exception();
    }
    request.file.reset();
    request.data_file.reset();
    for (const std::unique_ptr<Child>& hold : holds_) co_await hold->detach();
    holds_.clear();
    if (failure) std::rethrow_exception(failure);
    set_done(1);
  }

 private:
  // The node, or one made of the options, for as long as the job runs.
  Task<void> open_node(Value file, std::string option_path, std::shared_ptr<Node>& opened) {
    if (file.is_string()) {
      Node* const node = graph_.find(file.as_string());
      if (node == nullptr) {
        throw Error(ENOENT,
                    fmt::format("Cannot find device='' nor node-name='{}'", file.as_string()));
      }
      opened = node->shared_from_this();
    } else {
      OpenRequest open;
      open.options = std::move(file.as_dict());
      open.option_path = std::move(option_path);
      std::shared_ptr<Node> node = co_await graph_.open(std::move(open));
      opened = std::move(node);
    }
    const Permissions nothing{{}, Permissions::all()};
    std::unique_ptr<Child> hold =
        co_await graph_.attach(nullptr, std::string("create job"), EdgeRole::root, opened, nothing);
    holds_.push_back(std::move(hold));
  }

  Graph& graph_;
  const DriverType& driver_;
  Value::Dict options_;
  std::vector<std::unique_ptr<Child>> holds_;
};

}  // namespace

std::shared_ptr<Job> make_create_job(JobTable& jobs, Graph& graph, std::string id,
                                     Value::Dict options) {
  const std::optional<Value> name = options.take("driver");
  const DriverType& driver = graph.context().drivers().get(name->as_string());
  if (driver.create == nullptr) {
    throw Error(ENOTSUP, fmt::format("Driver '{}' does not support blockdev-create", driver.name));
  }
  JobSettings settings;
  settings.id = std::move(id);
  settings.auto_dismiss = false;
  return std::make_shared<CreateJob>(jobs.events(), graph, driver, std::move(settings),
                                     std::move(options));
}

}  // namespace vise
