// Opening: from a file name or a tree of options to nodes.
//
// open_layer() settles which driver a node gets (named, or probed); open_node() makes the node and
// lets the driver open itself, which calls back for its children through OpenContext.
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "graph/file_names.h"
#include "graph/internals.h"
#include "graph/node_options.h"
#include "graph/transfer.h"
#include "util/keyval.h"
#include "vise/context.h"
#include "vise/driver_table.h"
#include "vise/error.h"

namespace vise {

namespace {

constexpr std::size_t probe_bytes = 2048;
constexpr unsigned deepest = 400;  // nodes above one another: 200 images, each above its file

bool mentions(const Error& error, const std::string& name) {
  return error.message().find(fmt::format("'{}'", name)) != std::string::npos;
}

// `over` wins; a nested dictionary is replaced as a whole.
void override_options(Value::Dict& options, const Value::Dict& over) {
  for (const auto& [key, value] : over) options.set(key, value);
}

// Does a name without a driver at this place go straight to a protocol?
bool is_protocol_place(EdgeRole role) {
  return role == EdgeRole::storage || role == EdgeRole::data_file;
}

std::string take_driver(OpenRequest& request, const std::string& path) {
  auto named = request.options.take("driver");
  if (!request.format.empty()) return request.format;
  if (!named) return {};
  if (!named->is_string()) {
    throw Error(EINVAL, fmt::format("Option '{}driver' must be a string", path));
  }
  return named->as_string();
}

// Puts the options of the protocol under those of the node: as its own, or as its child "file".
void add_file_name(Value::Dict& options, Value::Dict file, bool is_protocol) {
  if (is_protocol) {
    override_options(file, options);
    options = std::move(file);
    return;
  }
  if (const Value* more = options.find("file")) {
    // How the named file is opened may be said beside its name, which file it is may not.
    const bool other = !more->is_dict() || more->as_dict().contains("filename") ||
                       more->as_dict().contains("driver");
    if (other) throw Error(EINVAL, "A file name and the option 'file' exclude one another");
    override_options(file, more->as_dict());
  }
  options.set("file", std::move(file));
}

void warn_about_probing(const Graph& graph, const std::string& name) {
  graph.on_warning(
      fmt::format("WARNING: No format was given for '{}', and its content looks like raw", name));
  graph.on_warning(
      "WARNING: Probing raw images is dangerous: writes to the first sector that would make it "
      "look "
      "like another format are refused");
  graph.on_warning("WARNING: Give the format 'raw' explicitly to lift the restriction");
}

// Headers may name a protocol as the format of a backing file, which then is used as it stands.
bool is_protocol(DriverTable& drivers, std::string_view format) {
  const DriverType* const type = drivers.find(format);
  return type != nullptr && type->kind == DriverKind::protocol;
}

// A name that an image holds, as options: never more than a plain file name, unless images are
// trusted. Guests and those who make images must not choose which protocols are spoken.
Value::Dict options_of_image_name(const Graph& graph, const std::string& image,
                                  const std::string& name) {
  DriverTable& drivers = graph.context().drivers();
  const std::string_view prefix = protocol_prefix(name);
  if (prefix == "json") {
    if (graph.trust_image_names) return json_options(name);
  } else if (prefix.empty() || prefix == "file") {
    const std::string_view plain = prefix.empty() ? name : std::string_view(name).substr(5);
    return plain_file_options(resolve_relative(image, plain));
  } else if (graph.trust_image_names) {
    return protocol_options(name, drivers);
  } else if (drivers.find(prefix.substr(0, prefix.find('+'))) == nullptr) {
    return plain_file_options(resolve_relative(image, name));
  }
  throw Error(EACCES, fmt::format("'{}' is not a plain file name, and images are not trusted to "
                                  "name anything else",
                                  name));
}

}  // namespace

Task<std::shared_ptr<Node>> Graph::open(OpenRequest request) {
  const std::string name = request.filename;
  try {
    co_return co_await Internals::open_layer(*this, std::move(request), nullptr, EdgeRole::root);
  } catch (Error& error) {
    if (!name.empty() && !mentions(error, name)) {
      error.add_context(fmt::format("Could not open '{}'", name));
    }
    throw;
  }
}

Task<std::shared_ptr<Node>> Graph::open_as(const DriverType& type, OpenRequest request) {
  return Internals::open_node(*this, &type, std::move(request), nullptr, EdgeRole::root);
}

Task<std::unique_ptr<Child>> Graph::open_root(OpenRequest request) {
  std::shared_ptr<Node> node = co_await open(std::move(request));
  Permissions wanted{Permission::consistent_read, Permissions::all()};
  if (!node->read_only()) wanted.uses |= PermissionSet(Permission::write) | Permission::resize;
  std::exception_ptr failure;
  std::unique_ptr<Child> edge;
  try {
    std::unique_ptr<Child> root =
        co_await Internals::attach(nullptr, std::string("root"), EdgeRole::root, node, &wanted);
    edge = std::move(root);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    co_await release(std::move(node));
    std::rethrow_exception(failure);
  }
  co_return edge;
}

// Below a filter it depends on the place of the filter.
bool Graph::Internals::names_protocol(const OpenContext* parent, EdgeRole role) {
  while (role == EdgeRole::filtered && parent != nullptr) {
    role = parent->role_;
    parent = parent->parent_;
  }
  return is_protocol_place(role);
}

Task<std::shared_ptr<Node>> Graph::Internals::open_layer(Graph& graph, OpenRequest request,
                                                         OpenContext* parent, EdgeRole role) {
  DriverTable& drivers = graph.context().drivers();
  const std::string path = request.option_path;
  request.options = nest_dotted_keys(std::move(request.options));
  if (request.filename.starts_with(json_prefix)) {
    Value::Dict described = json_options(request.filename);
    override_options(described, request.options);
    request.options = std::move(described);
    request.filename.clear();
  }
  const std::string driver = take_driver(request, path);
  const DriverType* type = driver.empty() ? nullptr : &drivers.get(driver);
  const bool is_protocol =
      type != nullptr ? type->kind == DriverKind::protocol : names_protocol(parent, role);
  if (!request.filename.empty()) {
    add_file_name(request.options, protocol_options(request.filename, drivers), is_protocol);
  } else if (type == nullptr) {
    const Value* name = request.options.find("filename");
    if (name != nullptr && name->is_string()) {
      Value::Dict file = plain_file_options(name->as_string());
      request.options.erase("filename");
      add_file_name(request.options, std::move(file), is_protocol);
    }
  }
  if (is_protocol) {
    const auto named = request.options.take("driver");
    if (type == nullptr && named) type = &drivers.get(named->as_string());
  }
  const bool can_be_probed = !is_protocol && request.options.contains("file");
  if (type == nullptr && !can_be_probed) {
    throw Error(EINVAL,
                fmt::format("Option '{}driver' is missing, and there is no file to tell it", path));
  }
  co_return co_await open_node(graph, type, std::move(request), parent, role);
}

std::shared_ptr<Node> Graph::Internals::make_node(Graph& graph, const DriverType& type,
                                                  OpenRequest& request) {
  NodeOptions options = take_node_options(request.options, request.defaults, request.option_path);
  if (options.node_name.empty()) {
    options.node_name = fmt::format("#block{:03}", graph.next_node_number_++);
  } else if (graph.find(options.node_name) != nullptr) {
    throw Error(EEXIST, fmt::format("There is a node named '{}' already", options.node_name));
  }
  return std::shared_ptr<Node>(new Node(graph, type, std::move(options)));
}

Task<std::shared_ptr<Node>> Graph::Internals::open_node(Graph& graph, const DriverType* type,
                                                        OpenRequest request, OpenContext* parent,
                                                        EdgeRole role) {
  // raw stands in until the content has told the format.
  const DriverType& known = type != nullptr ? *type : graph.context().drivers().get("raw");
  Value::Dict full_options = request.options;
  const std::shared_ptr<Node> node = make_node(graph, known, request);

  OpenContext context(*node);
  context.filename_ = request.filename;
  context.options_ = std::move(request.options);
  context.option_path_ = request.option_path;
  context.open_backing_ = request.open_backing;
  context.parent_ = parent;
  context.role_ = role;
  context.depth_ = parent != nullptr ? parent->depth_ + 1 : 0;

  std::exception_ptr failure;
  try {
    if (context.depth_ > deepest) {
      throw Error(ELOOP, fmt::format("There are more than {} nodes above one another", deepest));
    }
    if (parent != nullptr && known.kind == DriverKind::protocol) {
      check_for_loop(*parent, context.options_);
    }
    if (type == nullptr) co_await choose_by_content(context, request.warn_about_probing);
    full_options.set("driver", std::string(node->type_->name));
    node->full_options_ = std::move(full_options);
    std::unique_ptr<Driver> driver = co_await node->type_->open(context);
    node->driver_ = std::move(driver);
    if (!context.options_.empty()) {
      throw Error(EINVAL, fmt::format("Driver '{}' has no option '{}{}'", node->type_->name,
                                      context.option_path_, context.options_.begin()->first));
    }
    refresh_limits(*node);
    co_await update_permissions(*node, nullptr, {});
    if (graph.find(node->name()) != nullptr) {
      throw Error(EEXIST, fmt::format("There is a node named '{}' already", node->name()));
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) {
    graph.nodes_.push_back(node.get());
    co_return node;
  }
  co_await undo_open(context, node);
  std::rethrow_exception(failure);
}

Task<void> Graph::Internals::undo_open(OpenContext& context, std::shared_ptr<Node> node) {
  Graph& graph = node->graph_;
  if (node->driver_ != nullptr) {
    node->closed_ = true;
    try {
      co_await node->driver_->close();
    } catch (const Error&) {
      // What failed first is what to report.
    }
  }
  if (context.probed_file_ != nullptr) graph.abandoned_.push_back(std::move(context.probed_file_));
  co_await release_abandoned(graph);
}

Task<void> Graph::Internals::release_abandoned(Graph& graph) {
  while (!graph.abandoned_.empty()) {
    std::shared_ptr<Node> node = std::move(graph.abandoned_.back());
    graph.abandoned_.pop_back();
    co_await relax_permissions(*node);
    try {
      co_await graph.release(std::move(node));
    } catch (const Error&) {
      // The failure that led here is reported.
    }
  }
}

Task<void> Graph::Internals::choose_by_content(OpenContext& context, bool warn) {
  Graph& graph = context.graph();
  std::optional<Value> option = context.options_.take("file");
  std::shared_ptr<Node> file = co_await open_described(
      context, std::string("file"), EdgeRole::storage, std::move(option), OpenRequest());
  context.probed_file_ = file;
  const std::uint64_t size = file->size();
  Buffer head(std::min<std::uint64_t>(probe_bytes, size));
  const Target target{file->driver(), file->tracking_->effective, size};
  co_await read_any(target, GuestOffset(0), IoVec(head.span()));
  context.node_.type_ = &graph.context().drivers().probe(head.span());
  context.probed_ = true;
  if (warn && context.node_.type_->name == "raw" && !context.node_.read_only()) {
    warn_about_probing(graph, file->filename());
  }
}

Task<std::shared_ptr<Node>> Graph::Internals::open_described(OpenContext& context, std::string name,
                                                             EdgeRole role,
                                                             std::optional<Value> option,
                                                             OpenRequest request) {
  Graph& graph = context.graph();
  request.option_path = fmt::format("{}{}.", context.option_path_, name);
  if (option && option->is_string()) {
    Node* node = graph.find(option->as_string());
    if (node == nullptr) {
      throw Error(ENOENT, fmt::format("Option '{}{}': there is no node named '{}'",
                                      context.option_path_, name, option->as_string()));
    }
    co_return node->shared_from_this();
  }
  if (option) {
    if (!option->is_dict()) {
      throw Error(EINVAL, fmt::format("Option '{}{}' must be a node name or an object",
                                      context.option_path_, name));
    }
    Value::Dict given = nest_dotted_keys(std::move(option->as_dict()));
    const bool other_file = given.contains("file") || given.contains("filename");
    if (other_file || given.contains("driver")) request.format.clear();
    if (other_file) request.filename.clear();
    override_options(request.options, given);
  } else if (request.filename.empty()) {
    if (role == EdgeRole::backing) co_return nullptr;
    throw Error(EINVAL, fmt::format("Option '{}{}' is missing", context.option_path_, name));
  }
  request.defaults = inherited_options(context.node_.options(), role);
  request.warn_about_probing = false;
  const std::string image_name = std::exchange(request.filename, {});
  try {
    if (!image_name.empty()) {
      Value::Dict file =
          options_of_image_name(graph, context.node_.protocol_filename(), image_name);
      const bool complete = image_name.starts_with(json_prefix) || names_protocol(&context, role) ||
                            is_protocol(graph.context().drivers(), request.format);
      if (complete) {
        override_options(file, request.options);
        request.options = std::move(file);
      } else {
        request.options.set("file", std::move(file));
      }
    }
    co_return co_await open_layer(graph, std::move(request), &context, role);
  } catch (Error& error) {
    if (role == EdgeRole::backing) {
      error.add_context(image_name.empty()
                            ? std::string("Could not open backing file")
                            : fmt::format("Could not open backing file '{}'", image_name));
    }
    throw;
  }
}

void Graph::Internals::check_for_loop(OpenContext& parent, const Value::Dict& options) {
  const Value* filename = options.find("filename");
  struct stat status;
  if (filename == nullptr || !filename->is_string() ||
      stat(filename->as_string().c_str(), &status) != 0) {
    return;
  }
  const OpenContext::FileIdentity file{status.st_dev, status.st_ino};
  bool below_an_overlay = false;
  for (const OpenContext* above = &parent; above != nullptr; above = above->parent_) {
    const auto& files = above->files_;
    if (below_an_overlay && std::find(files.begin(), files.end(), file) != files.end()) {
      throw Error(ELOOP, fmt::format("The backing chain forms a loop: '{}' is in it twice",
                                     filename->as_string()));
    }
    below_an_overlay = below_an_overlay || above->role_ == EdgeRole::backing;
  }
  // The image it belongs to may be several layers up.
  for (OpenContext* image = &parent; image != nullptr; image = image->parent_) {
    image->files_.push_back(file);
    if (image->role_ == EdgeRole::backing) break;
  }
}

Task<std::unique_ptr<Child>> OpenContext::open_child(std::string name, EdgeRole role) {
  return open_child(std::move(name), role, OpenRequest());
}

Task<std::unique_ptr<Child>> OpenContext::open_child(std::string name, EdgeRole role,
                                                     OpenRequest request) {
  std::optional<Value> option = options_.take(name);
  if (role == EdgeRole::backing) {
    const bool switched_off =
        option && (option->is_null() || (option->is_string() && option->as_string().empty()));
    if (switched_off || !open_backing_) co_return nullptr;
  }
  std::shared_ptr<Node> node;
  if (name == "file" && probed_file_ != nullptr) {
    node = std::move(probed_file_);
  } else {
    std::shared_ptr<Node> opened = co_await Graph::Internals::open_described(
        *this, name, role, std::move(option), std::move(request));
    node = std::move(opened);
  }
  if (node == nullptr) co_return nullptr;
  // Below a node that may do with reading, a file that can only be read settles it.
  const bool carries = role == EdgeRole::storage || role == EdgeRole::filtered;
  if (carries && node->read_only() && node_.options_.auto_read_only) became_read_only();

  std::unique_ptr<Child> edge;
  std::exception_ptr failure;
  try {
    std::unique_ptr<Child> attached =
        co_await Graph::Internals::attach(&node_, std::move(name), role, node, nullptr);
    edge = std::move(attached);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    graph().abandoned_.push_back(std::move(node));
    std::rethrow_exception(failure);
  }
  co_return edge;
}

}  // namespace vise
