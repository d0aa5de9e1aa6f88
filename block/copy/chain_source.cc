#include "copy/chain_source.h"

#include <utility>

#include "graph/chain.h"
#include "util/clean_up.h"
#include "vise/error.h"

namespace vise {

Task<std::unique_ptr<ChainSource>> ChainSource::open(Node& top, Node* base, std::string user,
                                                     Sharing sharing) {
  std::unique_ptr<ChainSource> source(new ChainSource());
  const Node* const end = base != nullptr ? &image_of(*base) : nullptr;
  if (base != nullptr) source->base_ = base->shared_from_this();
  std::exception_ptr failure;
  try {
    for (Node* node = &top; node != nullptr && &image_of(*node) != end; node = backing_of(*node)) {
      const bool may_change =
          sharing == Sharing::all || (sharing == Sharing::top_written && source->layers_.empty());
      Permissions wanted{Permission::consistent_read, Permissions::all()};
      if (!may_change) {
        wanted.shares =
            wanted.shares.without(PermissionSet(Permission::write) | Permission::resize);
      }
      std::unique_ptr<Child> edge = co_await top.graph().attach(nullptr, user, EdgeRole::root,
                                                                node->shared_from_this(), wanted);
      source->layers_.push_back(std::move(edge));
    }
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return source;
  co_await source->close();
  std::rethrow_exception(failure);
}

Task<void> ChainSource::close() {
  CleanUp steps;
  for (const std::unique_ptr<Child>& edge : layers_) co_await steps.step(edge->detach());
  layers_.clear();
  base_.reset();
  steps.finish();
}

std::vector<Node*> ChainSource::nodes() const {
  std::vector<Node*> result;
  for (const std::unique_ptr<Child>& edge : layers_) {
    for (Node* node = &edge->node(); node != nullptr;) {
      result.push_back(node);
      const Child* below = node->filtered_child();
      node = below != nullptr ? &below->node() : nullptr;
    }
  }
  return result;
}

Task<ChainSource::Stretch> ChainSource::status(GuestRange range) const {
  const BlockStatus status =
      co_await block_status(node(), range, MapMode::allocation_only, base_.get());
  Stretch stretch;
  stretch.length = status.length;
  stretch.layer = static_cast<std::size_t>(status.depth);
  if (status.zero) {
    stretch.kind = Kind::zero;
  } else if (!status.allocated) {
    stretch.kind = base_ != nullptr ? Kind::absent : Kind::zero;
  } else if (status.compressed) {
    stretch.kind = Kind::compressed;
  }
  co_return stretch;
}

Task<void> ChainSource::read(GuestOffset offset, IoVec data) const {
  return layers_.front()->read(offset, data);
}

Task<EncodedRun> ChainSource::read_encoded(GuestRange range, std::size_t layer) const {
  return layers_[layer]->read_encoded(range);
}

}  // namespace vise
