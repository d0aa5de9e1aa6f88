// A qcow2 file on disk, and the metadata operations on it through the file driver.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "format/qcow2/check.h"
#include "qcow2_test_support.h"
#include "vise/context.h"
#include "vise/graph.h"

namespace vise::qcow2 {

class QcowFileTest : public testing::Test {
 protected:
  ~QcowFileTest() override { run(graph_.close_all()); }

  std::string file() const { return folder_.file("image.qcow2"); }

  template <class T>
  T run(Task<T> task) {
    return context_.loop().run(std::move(task));
  }

  /// Calls `use(child)` with the file opened read-write; detaches it whatever happens.
  template <class Use>
  auto with_file(Use use) {
    OpenRequest request;
    request.options.set("driver", "file");
    request.options.set("filename", file());
    std::unique_ptr<Child> child = run(graph_.open_root(std::move(request)));
    struct Detach {
      QcowFileTest& test;
      Child& child;
      ~Detach() { test.run(child.detach()); }
    } detach{*this, *child};
    return use(*child);
  }

  CheckResult check(Repair repair) {
    findings_.clear();
    return with_file([&](Child& child) {
      std::vector<std::byte> start(std::min<std::uint64_t>(child.size(), 2 << 20));
      run(child.read(GuestOffset(0), IoVec(std::span(start))));
      Header header = Header::decode(start, Header::Purpose::check);
      CheckRequest request;
      request.repair = repair;
      request.on_finding = [&](const std::string& line) { findings_ += line + "\n"; };
      return run(check_image(child, header, std::move(request)));
    });
  }

  TemporaryFolder folder_;
  Context context_;
  Graph graph_{context_};
  std::string findings_;
};

}  // namespace vise::qcow2
