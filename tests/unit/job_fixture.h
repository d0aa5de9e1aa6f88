// Chains of real qcow2 images with known content, jobs on them, and a guest that writes meanwhile.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "job/job_table.h"
#include "temporary_file.h"
#include "util/event_bus.h"
#include "vise/buffer.h"
#include "vise/child.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"
#include "vise/graph.h"

namespace vise::test {

class JobTest : public testing::Test {
 protected:
  static constexpr std::uint64_t cluster = 64u << 10;
  static constexpr std::uint64_t disk_size = 6 * 1024 * 1024 + 5 * 512;
  using Bytes = std::vector<std::byte>;

  JobTest() {
    events_.listen([this](std::string_view name, const Value& data) { log(name, data); });
  }
  ~JobTest() override {
    run(jobs_.stop_all());
    run(graph_.close_all());
  }

  template <class T>
  T run(Task<T> task) {
    return context_.loop().run(std::move(task));
  }
  std::string path(const std::string& name) const { return files_.folder() + "/" + name; }

  /// Makes `name`.qcow2; codec: "zlib" or "zstd".
  void create(const std::string& name, const std::string& codec = "zlib",
              const std::string& backing = {}) {
    Value::Dict file;
    file.set("driver", "file");
    file.set("filename", path(name));
    CreateRequest make{.graph = graph_, .filename = path(name), .size = 0};
    run(context_.drivers().get("file").create(make));
    OpenRequest open;
    open.options = file;
    std::shared_ptr<Node> node = run(graph_.open(std::move(open)));
    CreateRequest format{.graph = graph_, .filename = path(name), .size = disk_size};
    format.file = node;
    format.options.set("compression_type", codec);
    if (!backing.empty()) {
      format.options.set("backing_file", path(backing));
      format.options.set("backing_fmt", "qcow2");
    }
    run(context_.drivers().get("qcow2").create(format));
    format.file.reset();
    run(graph_.release(std::move(node)));
  }

  /// Opens it under its own name; `backing_node`: "none" for none, empty for what the header says.
  Node& open(const std::string& name, const std::string& backing_node = {}) {
    OpenRequest request;
    request.options.set("driver", "qcow2");
    request.options.set("node-name", name);
    request.options.set("file.driver", "file");
    request.options.set("file.filename", path(name));
    request.options.set("discard", "unmap");
    if (backing_node == "none") {
      request.options.set("backing", Value());
    } else if (!backing_node.empty()) {
      request.options.set("backing", backing_node);
    }
    std::shared_ptr<Node> node = run(graph_.open(std::move(request)));
    graph_.adopt(node);
    return *node;
  }
  Node& open_above(const std::string& name, const std::string& driver, const std::string& below) {
    OpenRequest request;
    request.options.set("driver", driver);
    request.options.set("node-name", name);
    request.options.set("file", below);
    std::shared_ptr<Node> node = run(graph_.open(std::move(request)));
    graph_.adopt(node);
    return *node;
  }

  std::unique_ptr<Child> attach(Node& node, bool writable) {
    Permissions wanted{Permission::consistent_read, Permissions::all()};
    if (writable) wanted.uses |= Permission::write;
    return run(graph_.attach(nullptr, "guest", EdgeRole::root, node.shared_from_this(), wanted));
  }

  /// Random stretches of text-like data; `model` follows.
  void fill(Node& node, Bytes& model, unsigned seed, bool compressed, int stretches = 12) {
    std::unique_ptr<Child> root = attach(node, true);
    std::mt19937 random(seed);
    for (int i = 0; i < stretches; ++i) {
      const std::uint64_t start = random() % (disk_size / cluster) * cluster;
      const std::uint64_t length =
          std::min<std::uint64_t>(disk_size - start, (random() % 6 + 1) * cluster);
      Buffer data(length);
      write_pattern(data.span(), random());
      run(root->write(GuestOffset(start), ConstIoVec(data.span()), {.compressed = compressed}));
      std::memcpy(model.data() + start, data.data(), length);
    }
    run(root->flush());
    run(root->detach());
  }
  static void write_pattern(std::span<std::byte> data, unsigned seed) {
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < data.size(); ++i) {
      if (i % 64 == 0) seed = random();
      data[i] = static_cast<std::byte>(seed >> (i % 4 * 8));
    }
  }

  Bytes content(Node& node) {
    std::unique_ptr<Child> root = attach(node, false);
    Bytes bytes(node.size());
    run(root->read(GuestOffset(0), IoVec(std::span(bytes))));
    run(root->detach());
    return bytes;
  }

  /// Writes, zeroes and discards (of zeroed places) until told to stop; `model` follows.
  Task<void> guest(Child& root, Bytes& model, unsigned seed, int requests) {
    std::mt19937 random(seed);
    for (int i = 0; i < requests && !guest_stops_; ++i) {
      const std::uint64_t start = random() % (disk_size / 512) * 512;
      const std::uint64_t most = std::min<std::uint64_t>(disk_size - start, 3 * cluster);
      const std::uint64_t length = random() % (most / 512) * 512 + 512;
      if (random() % 5 == 0) {
        co_await root.write_zeroes({GuestOffset(start), length}, {.may_unmap = true});
        std::memset(model.data() + start, 0, length);
      } else {
        Buffer data(length);
        write_pattern(data.span(), random());
        co_await root.write(GuestOffset(start), ConstIoVec(data.span()));
        std::memcpy(model.data() + start, data.data(), length);
      }
      if (random() % 4 == 0) co_await root.flush();
      co_await context_.loop().yield();
    }
  }

  void start(std::shared_ptr<Job> job) {
    jobs_.add(job);
    jobs_.start(std::move(job));
  }
  Task<void> gone(const std::string& id) {
    while (jobs_.find(id) != nullptr) co_await context_.loop().yield();
  }
  Task<void> until(const std::string& id, Job::Status status) {
    for (std::shared_ptr<Job> job = jobs_.find(id); job && job->status() != status;) {
      co_await context_.loop().yield();
    }
  }
  JobSettings settings(const std::string& id) {
    JobSettings settings;
    settings.id = id;
    return settings;
  }

  void log(std::string_view name, const Value& data) {
    const Value* status = data.as_dict().find("status");
    const Value* error = data.as_dict().find("error");
    if (!log_.empty()) log_ += ' ';
    log_ += status != nullptr && name == "JOB_STATUS_CHANGE" ? status->as_string()
                                                             : std::string(name.substr(10));
    if (error != nullptr) error_ = error->as_string();
  }
  std::string take_log() { return std::exchange(log_, {}); }

  TemporaryFile files_;
  Context context_;
  Graph graph_{context_};
  EventBus events_;
  AsyncMutex turn_;
  JobTable jobs_{events_, turn_};
  bool guest_stops_ = false;
  std::string log_;    // states, and BLOCK_JOB_ events in capitals
  std::string error_;  // of the last event that had one
};

}  // namespace vise::test
