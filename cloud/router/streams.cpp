// Table of live requests and the check of what nodes stream. See streams.h.
#include "cloud/router/streams.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/base/plant.h"

namespace updraft {
namespace {

const std::vector<uint32_t> kNone;

// Takes the entry at `position` out of a list; the one that moves into its place learns so.
template <typename Moved>
void take_out(std::vector<uint32_t>& list, uint32_t position, Moved moved) {
  list[position] = list.back();
  list.pop_back();
  if (position < list.size()) moved(list[position]);
}

}  // namespace

bool Stream::all_choices_finished() const {
  return std::all_of(choices.begin(), choices.end(),
                     [](const Choice& choice) { return choice.finished; });
}

ChunkVerdict take_chunk(Stream& stream, const TokenChunk& chunk, int64_t tokens_max,
                        std::string* why) {
  if (chunk.choice < 0 || static_cast<size_t>(chunk.choice) >= stream.choices.size()) {
    *why =
        "choice " + std::to_string(chunk.choice) + " of " + std::to_string(stream.choices.size());
    return ChunkVerdict::kFault;
  }
  Stream::Choice& choice = stream.choices[static_cast<size_t>(chunk.choice)];
  const auto have = static_cast<int64_t>(choice.ids.size());
  const int64_t begin = chunk.offset;
  const int64_t end = begin + static_cast<int64_t>(chunk.ids.size());
  if (begin < 0 || (begin > have && !UPDRAFT_PLANT(kTornTokens))) {
    *why = "gap: offset " + std::to_string(begin) + " after " + std::to_string(have) + " tokens";
    return ChunkVerdict::kFault;
  }
  if (begin < have && !UPDRAFT_PLANT(kRepeatedTokens)) {
    const bool same =
        end <= have && std::equal(chunk.ids.begin(), chunk.ids.end(), choice.ids.begin() + begin);
    if (same) return ChunkVerdict::kDrop;
    *why = "offset " + std::to_string(begin) + " repeats other tokens, " + std::to_string(have) +
           " were sent";
    return ChunkVerdict::kFault;
  }
  if (choice.finished) {
    const bool repeat = chunk.ids.empty() && chunk.text.empty();
    if (repeat) return ChunkVerdict::kDrop;
    *why = "tokens after the end of choice " + std::to_string(chunk.choice);
    return ChunkVerdict::kFault;
  }
  if (tokens_max > 0 && end > tokens_max) {
    *why = std::to_string(end) + " tokens where at most " + std::to_string(tokens_max) +
           " were asked for";
    return ChunkVerdict::kFault;
  }
  choice.ids.insert(choice.ids.end(), chunk.ids.begin(), chunk.ids.end());
  choice.finished = chunk.finish.has_value();
  return ChunkVerdict::kDeliver;
}

Stream& StreamTable::create(Request request, int64_t payload_bytes) {
  uint32_t slot = 0;
  if (!free_slots_.empty()) {
    slot = free_slots_.back();
    free_slots_.pop_back();
  } else {
    slot = static_cast<uint32_t>(streams_.size());
    streams_.emplace_back();
  }
  Stream& stream = streams_[slot];
  stream.slot = slot;
  stream.live = true;
  stream.request = std::move(request);
  stream.payload_bytes = payload_bytes;
  payload_bytes_ += payload_bytes;
  const bool is_new = by_id_.emplace(stream.request.id, slot).second;
  UPDRAFT_CHECK(is_new, "a request id is live once");
  return stream;
}

void StreamTable::erase(Stream& stream) {
  UPDRAFT_CHECK(stream.live);
  detach(stream);
  drop_origin(stream);
  by_id_.erase(stream.request.id);
  payload_bytes_ -= stream.payload_bytes;
  const uint32_t slot = stream.slot;
  const uint32_t generation = stream.generation + 1;
  stream = Stream{};
  stream.slot = slot;
  stream.generation = generation;
  free_slots_.push_back(slot);
}

Stream* StreamTable::find(const RequestId& id) {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &streams_[it->second];
}

Stream* StreamTable::at(uint32_t slot, uint32_t generation) {
  Stream& stream = streams_[slot];
  return stream.live && stream.generation == generation ? &stream : nullptr;
}

void StreamTable::attach(Stream& stream, NodeIndex node) {
  UPDRAFT_CHECK(stream.node == kNoNode);
  if (on_node_.size() <= node) on_node_.resize(node + 1);
  stream.node = node;
  stream.node_position = static_cast<uint32_t>(on_node_[node].size());
  on_node_[node].push_back(stream.slot);
  ++dispatched_;
}

void StreamTable::detach(Stream& stream) {
  if (stream.node == kNoNode) return;
  take_out(on_node_[stream.node], stream.node_position,
           [&](uint32_t slot) { streams_[slot].node_position = stream.node_position; });
  stream.node = kNoNode;
  --dispatched_;
}

void StreamTable::set_origin(Stream& stream, NodeRef origin) {
  if (risen_from_.size() <= origin.index) risen_from_.resize(origin.index + 1);
  stream.wish.origin = origin;
  stream.origin_position = static_cast<uint32_t>(risen_from_[origin.index].size());
  risen_from_[origin.index].push_back(stream.slot);
}

void StreamTable::drop_origin(Stream& stream) {
  if (!stream.rose()) return;
  take_out(risen_from_[stream.wish.origin.index], stream.origin_position,
           [&](uint32_t slot) { streams_[slot].origin_position = stream.origin_position; });
  stream.wish.origin = NodeRef{};
}

const std::vector<uint32_t>& StreamTable::on_node(NodeIndex node) const {
  return node < on_node_.size() ? on_node_[node] : kNone;
}

const std::vector<uint32_t>& StreamTable::risen_from(NodeIndex node) const {
  return node < risen_from_.size() ? risen_from_[node] : kNone;
}

}  // namespace updraft
