// blkdebug: makes requests fail, or wait, at events that the nodes above and this one report. What
// happens when is decided by blkdebug_rules.h; rules come as options or from a file
// (blkdebug_config.h).
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "filter/blkdebug_config.h"
#include "filter/blkdebug_rules.h"
#include "filter/filters.h"
#include "util/driver_options.h"
#include "vise/breakpoints.h"
#include "vise/error.h"
#include "vise/event_loop.h"
#include "vise/filter.h"
#include "vise/graph.h"
#include "vise/sync.h"

namespace vise {

namespace {

// The schema lists the events in the order of the header.
static_assert(static_cast<int>(qapi::BlkdebugEvent::l2_load) == static_cast<int>(Event::l2_load));
static_assert(static_cast<int>(qapi::BlkdebugEvent::cluster_free) ==
              static_cast<int>(Event::cluster_free));
static_assert(static_cast<int>(qapi::BlkdebugEvent::none) == static_cast<int>(Event::none));

Event event_of(qapi::BlkdebugEvent event) { return static_cast<Event>(event); }

/// Limits that the options put upon the node, 0 where they do not.
struct ForcedLimits {
  std::uint64_t align = 0;
  std::uint64_t max_transfer = 0;
  std::uint64_t opt_write_zero = 0;
  std::uint64_t max_write_zero = 0;
  std::uint64_t opt_discard = 0;
  std::uint64_t max_discard = 0;
};

struct ForcedPermissions {
  PermissionSet taken;
  PermissionSet unshared;
};

class BlkdebugDriver final : public Filter, public Breakpoints {
 public:
  BlkdebugDriver(std::unique_ptr<Child> child, BlkdebugRules rules, ForcedLimits forced,
                 ForcedPermissions permissions)
      : Filter(std::move(child)),
        rules_(std::move(rules)),
        forced_(forced),
        permissions_(permissions) {
    rules_.reached(Event::none);
  }

  Limits limits() const override;
  Permissions child_permissions(const Child& edge, Permissions parents) const override;

  Task<Extent> map(GuestRange range, MapMode mode) override {
    co_await fault(BlkdebugIo::block_status, range);
    co_return co_await Filter::map(range, mode);
  }
  Task<void> read(GuestOffset offset, IoVec data) override {
    co_await fault(BlkdebugIo::read, {offset, data.size()});
    co_await Filter::read(offset, data);
  }
  Task<void> write(GuestOffset offset, ConstIoVec data, WriteFlags flags) override {
    co_await fault(BlkdebugIo::write, {offset, data.size()});
    co_await Filter::write(offset, data, flags);
  }
  Task<void> write_zeroes(GuestRange range, ZeroFlags flags) override {
    co_await fault(BlkdebugIo::write_zeroes, range);
    co_await Filter::write_zeroes(range, flags);
  }
  Task<void> discard(GuestRange range) override {
    co_await fault(BlkdebugIo::discard, range);
    co_await Filter::discard(range);
  }
  Task<void> flush() override {
    co_await fault(BlkdebugIo::flush, {});
    co_await Filter::flush();
  }
  // Encoded clusters pass as the reads and writes that they stand for.
  Task<EncodedRun> read_encoded(GuestRange) override { co_return EncodedRun(); }
  Task<bool> write_encoded(GuestOffset, std::span<const EncodedExtent>, WriteFlags) override {
    co_return false;
  }

  EventPause* reached(Event event) override;
  void add_breakpoint(std::string_view event, std::string tag) override;
  void remove_breakpoint(std::string_view tag) override;
  void resume(std::string_view tag) override;
  Task<void> wait_suspended(std::string_view tag) override;

 private:
  struct Suspended : EventPause {
    std::string tag;
  };

  Task<void> fault(BlkdebugIo request, GuestRange range);
  std::list<Suspended>::iterator find_suspended(std::string_view tag);
  void resume(std::list<Suspended>::iterator request);

  BlkdebugRules rules_;
  const ForcedLimits forced_;
  const ForcedPermissions permissions_;
  std::list<Suspended> suspended_;  // newest first
  WaitQueue somebody_suspended_;
};

Limits BlkdebugDriver::limits() const {
  Limits limits = child().limits();
  if (forced_.align != 0) limits.request_alignment = static_cast<std::uint32_t>(forced_.align);
  if (forced_.max_transfer != 0) limits.max_transfer = forced_.max_transfer;
  if (forced_.opt_write_zero != 0) limits.zero_alignment = forced_.opt_write_zero;
  if (forced_.max_write_zero != 0) limits.max_zeroes = forced_.max_write_zero;
  if (forced_.opt_discard != 0) limits.discard_alignment = forced_.opt_discard;
  if (forced_.max_discard != 0) limits.max_discard = forced_.max_discard;
  return limits;
}

Permissions BlkdebugDriver::child_permissions(const Child& edge, Permissions parents) const {
  Permissions result = Filter::child_permissions(edge, parents);
  result.uses |= permissions_.taken;
  result.shares = result.shares.without(permissions_.unshared);
  return result;
}

Task<void> BlkdebugDriver::fault(BlkdebugIo request, GuestRange range) {
  const auto found = rules_.fault_for(request, range);
  if (!found) co_return;
  if (!found->immediately) co_await EventLoop::current().yield();
  throw Error(found->error_code,
              fmt::format("{} (injected by blkdebug)", std::strerror(found->error_code)));
}

// What is printed here is what scripts that set breakpoints wait for.
EventPause* BlkdebugDriver::reached(Event event) {
  std::optional<std::string> tag = rules_.reached(event);
  if (!tag) return nullptr;
  fmt::print("blkdebug: Suspended request '{}'\n", *tag);
  std::fflush(stdout);
  Suspended request;
  request.tag = std::move(*tag);
  suspended_.push_front(std::move(request));
  somebody_suspended_.wake_all();
  return &suspended_.front();
}

void BlkdebugDriver::add_breakpoint(std::string_view event, std::string tag) {
  const auto names = qapi::names_of(qapi::BlkdebugEvent());
  const auto found = std::ranges::find(names, event);
  if (found == names.end()) {
    // The errno is what scripts know.
    throw Error(ENOENT, fmt::format("there is no event '{}'", event));
  }
  rules_.add_breakpoint(static_cast<Event>(found - names.begin()), std::move(tag));
}

void BlkdebugDriver::remove_breakpoint(std::string_view tag) {
  const std::size_t removed = rules_.remove_breakpoints(tag);
  for (auto request = suspended_.begin(); request != suspended_.end();) {
    const auto next = std::next(request);
    if (request->tag == tag) resume(request);
    request = next;
  }
  if (removed == 0) throw Error(ENOENT, fmt::format("there is no breakpoint '{}'", tag));
}

std::list<BlkdebugDriver::Suspended>::iterator BlkdebugDriver::find_suspended(
    std::string_view tag) {
  return std::ranges::find(suspended_, tag, &Suspended::tag);
}

void BlkdebugDriver::resume(std::list<Suspended>::iterator request) {
  fmt::print("blkdebug: Resuming request '{}'\n", request->tag);
  EventLoop::current().schedule(request->waiter);
  suspended_.erase(request);
}

void BlkdebugDriver::resume(std::string_view tag) {
  const auto request = find_suspended(tag);
  if (request == suspended_.end()) {
    throw Error(ENOENT, fmt::format("no request is suspended as '{}'", tag));
  }
  resume(request);
}

Task<void> BlkdebugDriver::wait_suspended(std::string_view tag) {
  while (find_suspended(tag) == suspended_.end()) co_await somebody_suspended_.wait();
}

FlagSet<BlkdebugIo> requests_of(std::optional<qapi::BlkdebugIOType> type) {
  if (type) return static_cast<BlkdebugIo>(1u << static_cast<unsigned>(*type));
  // Without one: all that data is at stake with.
  return FlagSet<BlkdebugIo>(BlkdebugIo::read) | BlkdebugIo::write | BlkdebugIo::write_zeroes |
         BlkdebugIo::discard | BlkdebugIo::flush;
}

BlkdebugRules::InjectError rule_of(const qapi::BlkdebugInjectErrorOptions& from) {
  BlkdebugRules::InjectError rule;
  rule.event = event_of(from.event);
  rule.state = from.state.value_or(0);
  rule.requests = requests_of(from.iotype);
  rule.error_code = from.errno_.value_or(EIO);
  if (rule.error_code < 0 || rule.error_code > 4095) {
    throw Error(EINVAL, fmt::format("Parameter 'inject-error': errno {} is not one from 0 to 4095",
                                    rule.error_code));
  }
  // -1 is how scripts say "anywhere".
  const std::int64_t sector = from.sector.value_or(-1);
  if (sector < -1 || sector > INT64_MAX / 512) {
    throw Error(EINVAL, fmt::format("Parameter 'inject-error': there is no sector {}", sector));
  }
  if (sector >= 0) rule.sector = static_cast<std::uint64_t>(sector);
  rule.once = from.once.value_or(false);
  rule.immediately = from.immediately.value_or(false);
  return rule;
}

template <class Options>
void add_rules(const Options& from, BlkdebugRules& rules) {
  for (const auto& rule :
       from.inject_error.value_or(std::vector<qapi::BlkdebugInjectErrorOptions>()))
    rules.add(rule_of(rule));
  for (const auto& rule : from.set_state.value_or(std::vector<qapi::BlkdebugSetStateOptions>())) {
    rules.add(
        BlkdebugRules::SetState{event_of(rule.event), rule.state.value_or(0), rule.new_state});
  }
}

void add_rules_of_file(const std::string& path, BlkdebugRules& rules) {
  const Value config(read_blkdebug_config(path));
  try {
    add_rules(read_value<qapi::BlkdebugRuleOptions>(config, ValueInput::options), rules);
  } catch (Error& error) {
    error.add_context(fmt::format("blkdebug config file '{}'", path));
    throw;
  }
}

std::uint64_t checked_limit(std::string_view name, std::optional<std::uint64_t> value,
                            std::uint64_t unit, bool power_of_two) {
  if (!value || *value == 0) return 0;
  const bool fits =
      *value < INT_MAX && *value % unit == 0 && (!power_of_two || std::has_single_bit(*value));
  if (fits) return *value;
  throw Error(EINVAL,
              fmt::format("Parameter '{}' expects {} of at least {} below 2 GiB, not {}", name,
                          power_of_two ? "a power of two" : "a multiple", unit, *value));
}

ForcedLimits limits_of(const qapi::BlockdevOptionsBlkdebug& options) {
  ForcedLimits limits;
  limits.align = checked_limit("align", options.align, 1, true);
  const std::uint64_t align = std::max<std::uint64_t>(limits.align, 1);
  limits.max_transfer = checked_limit("max-transfer", options.max_transfer, align, false);
  limits.opt_write_zero = checked_limit("opt-write-zero", options.opt_write_zero, align, true);
  limits.max_write_zero = checked_limit("max-write-zero", options.max_write_zero,
                                        std::max(align, limits.opt_write_zero), false);
  limits.opt_discard = checked_limit("opt-discard", options.opt_discard, align, true);
  limits.max_discard =
      checked_limit("max-discard", options.max_discard, std::max(align, limits.opt_discard), false);
  return limits;
}

PermissionSet permissions_of(const std::optional<std::vector<qapi::BlockPermission>>& names) {
  PermissionSet set;
  if (!names) return set;
  for (const qapi::BlockPermission name : *names) {
    set |= static_cast<Permission>(1u << static_cast<unsigned>(name));
  }
  return set;
}

Task<std::unique_ptr<Driver>> open(OpenContext& context) {
  const auto options = read_options<qapi::BlockdevOptionsBlkdebug>(context);
  BlkdebugRules rules;
  if (options.config && !options.config->empty()) add_rules_of_file(*options.config, rules);
  add_rules(options, rules);
  const ForcedLimits limits = limits_of(options);
  const ForcedPermissions permissions{permissions_of(options.take_child_perms),
                                      permissions_of(options.unshare_child_perms)};
  std::unique_ptr<Child> child =
      co_await context.open_child(std::string("image"), EdgeRole::filtered);
  co_return std::make_unique<BlkdebugDriver>(std::move(child), std::move(rules), limits,
                                             permissions);
}

}  // namespace

const DriverType blkdebug_driver = {.name = "blkdebug", .kind = DriverKind::filter, .open = open};

}  // namespace vise
