// Prints the content of an image, whatever its format: Vise in a program of one's own.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include <vise/context.h>
#include <vise/error.h>
#include <vise/graph.h>

namespace {

vise::Task<void> print(vise::Child& disk) {
  vise::Buffer buffer(1 << 20);
  for (std::uint64_t offset = 0; offset < disk.size();) {
    const auto part = buffer.first(std::min<std::uint64_t>(buffer.size(), disk.size() - offset));
    co_await disk.read(vise::GuestOffset(offset), vise::IoVec(part));
    std::fwrite(part.data(), 1, part.size(), stdout);
    offset += part.size();
  }
}

vise::Task<void> run(vise::Graph& graph, vise::OpenRequest request) {
  std::unique_ptr<vise::Child> disk = co_await graph.open_root(std::move(request));
  co_await print(*disk);
  co_await disk->detach();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s IMAGE\n", argv[0]);
    return 1;
  }
  vise::Context context;
  vise::Graph graph(context);
  vise::OpenRequest request;
  request.filename = argv[1];
  request.defaults.read_only = true;
  try {
    context.loop().run(run(graph, std::move(request)));
  } catch (const vise::Error& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
