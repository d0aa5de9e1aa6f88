#include "tools/common/open.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "graph/file_names.h"
#include "tools/common/creation.h"
#include "util/keyval.h"
#include "vise/error.h"
#include "vise/util/checked.h"

namespace vise::tools {

CacheMode parse_cache_mode(std::string_view name) {
  if (name == "writeback") return {};
  if (name == "none" || name == "off") return {.direct = true};
  if (name == "writethrough") return {.writethrough = true};
  if (name == "directsync") return {.direct = true, .writethrough = true};
  if (name == "unsafe") return {.no_flush = true};
  throw Error(EINVAL, fmt::format("Invalid cache mode '{}': must be writeback, none, "
                                  "writethrough, directsync or unsafe",
                                  name));
}

namespace {

// aio is an option of the node that opens the file: the innermost "file" of the options, unless
// they say there what it is to be.
void set_aio(OpenRequest& request, const std::string& aio, DriverTable& drivers) {
  if (aio != "threads" && aio != "native" && aio != "io_uring") {
    throw Error(EINVAL,
                fmt::format("Invalid aio mode '{}': must be threads, native or io_uring", aio));
  }
  if (aio == "native" && !request.defaults.cache_direct) {
    throw Error(EINVAL,
                "aio=native needs a cache mode without the host's page cache (none or "
                "directsync)");
  }
  if (request.filename.starts_with(json_prefix)) {
    Value::Dict named = json_options(request.filename);
    for (const auto& [name, value] : request.options) named.set(name, value);
    request.options = std::move(named);
    request.filename.clear();
  } else if (!request.filename.empty()) {
    request.options.set("file", protocol_options(request.filename, drivers));
    request.filename.clear();
  }
  Value::Dict* node = &request.options;
  for (Value* below = node->find("file"); below != nullptr && below->is_dict();
       below = node->find("file")) {
    node = &below->as_dict();
  }
  if (node->contains("filename") && !node->contains("aio")) node->set("aio", aio);
}

// A file that nobody can open by its name any more once this ends.
class UnlinkedFile {
 public:
  UnlinkedFile() {
    const char* folder = std::getenv("TMPDIR");
    path_ =
        fmt::format("{}/vise-XXXXXX", folder != nullptr && *folder != '\0' ? folder : "/var/tmp");
    const int file = mkostemp(path_.data(), O_CLOEXEC);
    if (file < 0) throw Error::system_error(errno, "Could not make a temporary overlay");
    close(file);
  }
  ~UnlinkedFile() { unlink(path_.c_str()); }
  UnlinkedFile(const UnlinkedFile&) = delete;
  UnlinkedFile& operator=(const UnlinkedFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace

Value::Dict image_options(const Program& program, std::string_view text) {
  Keyval parsed = parse_image_options(text);
  for (const std::string& word : parsed.bare_words) {
    print_warning(program,
                  fmt::format("Option '{0}' without a value is deprecated: write '{0}=on'", word));
  }
  return std::move(parsed.options);
}

OpenRequest open_request(const Program& program, const ImageArguments& image) {
  OpenRequest request;
  if (image.image_opts) {
    if (!image.format.empty()) {
      throw Error(EINVAL, "--image-opts and --format are mutually exclusive");
    }
    request.options = image_options(program, image.filename);
  } else {
    request.filename = image.filename;
    request.format = image.format;
  }
  for (const auto& [name, value] : image.options) request.options.set(name, value);
  request.defaults.read_only = image.read_only;
  request.defaults.force_share = image.force_share;
  request.defaults.cache_direct = image.cache.direct;
  request.defaults.cache_no_flush = image.cache.no_flush;
  request.defaults.discard_unmap = image.discard_unmap;
  request.defaults.purpose = image.purpose;
  request.open_backing = image.open_backing;
  request.warn_about_probing = image.warn_about_probing;
  return request;
}

std::uint64_t shown_size(std::uint64_t bytes) { return align_up(bytes, 512); }

ImageSession::ImageSession(const Program& program, Context::Options options)
    : program_(program), context_(options), graph_(context_) {
  graph_.on_warning = [&program](const std::string& text) {
    // These lines stand as they are, as scripts know them.
    if (text.starts_with("WARNING:")) {
      std::fputs((text + "\n").c_str(), stderr);
    } else {
      print_warning(program, text);
    }
  };
}

ImageSession::~ImageSession() = default;

Task<Child*> ImageSession::open(ImageArguments image) {
  OpenRequest request = open_request(program_, image);
  if (!image.aio.empty()) set_aio(request, image.aio, context_.drivers());
  if (image.temporary_overlay) {
    co_return co_await open_under_overlay(std::move(request), std::move(image));
  }
  if (image.copy_on_read) co_return co_await open_copying(std::move(request));
  co_return co_await open(std::move(request));
}

Task<Child*> ImageSession::open_under_overlay(OpenRequest request, ImageArguments image) {
  OpenRequest overlay;
  overlay.defaults = request.defaults;
  overlay.defaults.read_only = false;
  request.defaults.read_only = true;
  const std::shared_ptr<Node> below = co_await graph_.open(std::move(request));
  graph_.adopt(below);  // until it has a parent
  Child* root = nullptr;
  std::exception_ptr failure;
  try {
    root = co_await open_overlay(*below, std::move(overlay), std::move(image));
  } catch (...) {
    failure = std::current_exception();
  }
  co_await graph_.disown(*below);
  if (failure) std::rethrow_exception(failure);
  co_return root;
}

Task<Child*> ImageSession::open_overlay(Node& below, OpenRequest overlay, ImageArguments image) {
  const UnlinkedFile file;
  const CreationTypes types = creation_types(context_.drivers(), "qcow2", file.path());
  Value::Dict options;
  co_await create_image(graph_, types, file.path(), shown_size(below.size()), std::move(options));
  overlay.options.set("driver", "qcow2");
  overlay.options.set("file.driver", "file");
  overlay.options.set("file.filename", file.path());
  overlay.options.set("backing", below.name());
  if (image.copy_on_read) co_return co_await open_copying(std::move(overlay));
  co_return co_await open(std::move(overlay));
}

Task<Child*> ImageSession::open_copying(OpenRequest request) {
  if (request.defaults.read_only) {
    throw Error(EINVAL, "Copy-on-read needs an image that can be written to");
  }
  std::shared_ptr<Node> node = co_await graph_.open(std::move(request));
  OpenRequest above;
  above.options.set("driver", "copy-on-read");
  above.options.set("file", node->name());
  std::exception_ptr failure;
  try {
    co_return co_await open(std::move(above));
  } catch (...) {
    failure = std::current_exception();
  }
  co_await graph_.release(std::move(node));
  std::rethrow_exception(failure);
}

Task<Child*> ImageSession::open(OpenRequest request) {
  std::unique_ptr<Child> root = co_await graph_.open_root(std::move(request));
  roots_.push_back(std::move(root));
  co_return roots_.back().get();
}

Task<void> ImageSession::close(Child* root) {
  const auto position = std::find_if(roots_.begin(), roots_.end(),
                                     [&](const auto& held) { return held.get() == root; });
  assert(position != roots_.end());
  std::unique_ptr<Child> leaving = std::move(*position);
  roots_.erase(position);
  co_await leaving->detach();
}

Task<void> ImageSession::close_all() {
  std::exception_ptr first;
  while (!roots_.empty()) {
    try {
      co_await close(roots_.back().get());
    } catch (...) {
      if (!first) first = std::current_exception();
    }
  }
  co_await graph_.close_all();
  if (first) std::rethrow_exception(first);
}

void ImageSession::close_quietly() noexcept {
  try {
    context_.loop().run(close_all());
  } catch (const std::exception&) {
    // The error that ended the command is already on its way to the user.
  }
}

}  // namespace vise::tools
