// How the programs open images: the options they all share, and a session that closes what it
// opened whatever happens.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/common/output.h"
#include "vise/context.h"
#include "vise/graph.h"

namespace vise::tools {

struct CacheMode {
  bool direct = false;        // past the host's page cache
  bool no_flush = false;      // flushes do nothing
  bool writethrough = false;  // every write is stable when it completes
};
/// writeback, none, off, writethrough, directsync, unsafe. Throws Error(EINVAL) for anything else.
CacheMode parse_cache_mode(std::string_view name);

/// One image as a command line names it.
struct ImageArguments {
  std::string filename;  // with `image_opts` an option string
  std::string format;    // empty: probe
  bool image_opts = false;
  bool read_only = true;
  bool force_share = false;
  bool open_backing = true;
  bool warn_about_probing = true;  // if the content of a writable image looks like raw
  CacheMode cache;
  OpenPurpose purpose = OpenPurpose::io;
  Value::Dict options;  // more options for the node, which win
  bool discard_unmap = false;
  bool copy_on_read = false;
  bool temporary_overlay = false;  // takes the writes, and is gone when the image is closed
  std::string aio;                 // threads, native or io_uring; empty: the default
};

/// The options of an --image-opts style string, nested. Warns about words without a value.
Value::Dict image_options(const Program& program, std::string_view text);

/// Throws Error(EINVAL) for option strings that cannot be parsed and for combinations that
/// exclude each other.
OpenRequest open_request(const Program& program, const ImageArguments& image);

/// The size of an image as the programs tell it: in whole sectors of 512 bytes.
std::uint64_t shown_size(std::uint64_t bytes);

/// A loop, a graph, and the roots that were opened in it.
class ImageSession {
 public:
  explicit ImageSession(const Program& program, Context::Options options = Context::Options{});
  ~ImageSession();
  ImageSession(const ImageSession&) = delete;

  const Program& program() const { return program_; }
  Context& context() { return context_; }
  Graph& graph() { return graph_; }

  /// Opens an image and keeps it open until close() or the end of run(). The pointer is valid
  /// until then. With copy_on_read it leads to the filter above the image.
  Task<Child*> open(ImageArguments image);
  /// The same for a request put together by the caller.
  Task<Child*> open(OpenRequest request);
  /// Lets go of one image; throws what its last flush throws.
  Task<void> close(Child* root);

  /// Runs `body` on the loop, then closes everything, also when it throws. Errors of closing are
  /// thrown if there was no earlier one.
  template <class T>
  T run(Task<T> body);

  /// Closes what is still open, for programs that use the loop by themselves.
  Task<void> close_all();

 private:
  Task<Child*> open_copying(OpenRequest request);
  Task<Child*> open_under_overlay(OpenRequest request, ImageArguments image);
  Task<Child*> open_overlay(Node& below, OpenRequest overlay, ImageArguments image);
  void close_quietly() noexcept;

  const Program& program_;
  Context context_;
  Graph graph_;
  std::vector<std::unique_ptr<Child>> roots_;
};

template <class T>
T ImageSession::run(Task<T> body) {
  struct Closer {
    ImageSession* session;
    ~Closer() {
      if (session != nullptr) session->close_quietly();
    }
  } closer{this};
  T result = context_.loop().run(std::move(body));
  closer.session = nullptr;
  context_.loop().run(close_all());
  return result;
}

}  // namespace vise::tools
