#include "filter/blkdebug_rules.h"

#include <algorithm>
#include <utility>

namespace vise {

namespace {

bool touches(GuestRange range, std::uint64_t sector) {
  return !range.empty() && range.overlaps({GuestOffset(sector * 512), 512});
}

template <class Rule>
bool applies(const Rule& rule, Event event, int state) {
  return rule.event == event && (rule.state == 0 || rule.state == state);
}

}  // namespace

void BlkdebugRules::add_breakpoint(Event event, std::string tag) {
  breakpoints_.push_back({event, std::move(tag)});
}

std::size_t BlkdebugRules::remove_breakpoints(std::string_view tag) {
  return std::erase_if(breakpoints_, [&](const Breakpoint& point) { return point.tag == tag; });
}

std::optional<std::string> BlkdebugRules::reached(Event event) {
  // What an earlier event has armed stays so until another one arms something.
  bool first = true;
  for (auto rule = errors_.begin(); rule != errors_.end(); ++rule) {
    if (!applies(*rule, event, state_)) continue;
    if (first) armed_.clear();
    first = false;
    armed_.push_back(rule);
  }
  // All rules see the state as it was before.
  int new_state = state_;
  for (const SetState& rule : states_) {
    if (applies(rule, event, state_)) new_state = rule.new_state;
  }
  state_ = new_state;

  const auto hit = std::ranges::find(breakpoints_, event, &Breakpoint::event);
  if (hit == breakpoints_.end()) return std::nullopt;
  std::string tag = std::move(hit->tag);
  breakpoints_.erase(hit);
  return tag;
}

std::optional<BlkdebugRules::Fault> BlkdebugRules::fault_for(BlkdebugIo request, GuestRange range) {
  const auto found = std::ranges::find_if(armed_, [&](const auto& rule) {
    return rule->requests.has(request) && (!rule->sector || touches(range, *rule->sector));
  });
  if (found == armed_.end()) return std::nullopt;
  const auto rule = *found;
  const Fault fault{rule->error_code, rule->immediately};
  if (rule->once) {
    armed_.erase(found);
    errors_.erase(rule);
  }
  if (fault.error_code == 0) return std::nullopt;
  return fault;
}

}  // namespace vise
