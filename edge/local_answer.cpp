// See the header.
#include "edge/local_answer.h"

#include <string_view>

#include "common/base/bytes.h"
#include "common/message/pool_message.h"

namespace updraft {
namespace {

size_t bytes_of(const Event& event) {
  size_t bytes = sizeof(Event);
  if (const auto* chunk = std::get_if<TokenChunk>(&event)) {
    bytes += chunk->text.size() + chunk->ids.size() * sizeof(int32_t);
    for (const PositionLogprobs& position : chunk->logprobs)
      bytes += (1 + position.top.size()) * sizeof(TokenLogprob);
  }
  return bytes;
}

uint64_t mixed(uint64_t digest, ByteView bytes) {
  const uint64_t hash = std::hash<std::string_view>{}(as_text(bytes));
  return (digest ^ hash) * 0x9E3779B97F4A7C15ULL + bytes.size();
}

}  // namespace

uint64_t content_digest(const Request& request) {
  Request rest = request;
  rest.id.clear();
  rest.tenant.clear();
  uint64_t digest = 0;
  for (ChatMessage& message : rest.messages) {
    for (ContentPart& part : message.parts) {
      if (part.kind != ContentPart::Kind::kImage) continue;
      digest = mixed(digest, part.bytes.view());
      part.bytes = {};
    }
  }
  return mixed(digest, encode(Submit{std::move(rest), 1, 0}));
}

void LocalAnswer::take(Event event) {
  const std::lock_guard lock(mutex_);
  const bool end = is_end(event);
  kept_bytes_ += bytes_of(event);
  // An end by itself always fits: who resubmits an ended request gets at least that.
  too_long_ = too_long_ || (!end && kept_bytes_ > kKeptBytesMax);
  if (too_long_) {
    kept_ = {};
    kept_bytes_ = 0;
  } else {
    kept_.push_back(event);
  }
  if (to_) to_(std::move(event));
  if (!end) return;
  ended_ = true;
  to_ = nullptr;  // and with it the session
}

bool LocalAnswer::attach(Deliver to) {
  const std::lock_guard lock(mutex_);
  if (too_long_) return false;
  for (const Event& event : kept_) to(event);
  if (!ended_) to_ = std::move(to);
  return true;
}

bool LocalAnswer::ended() const {
  const std::lock_guard lock(mutex_);
  return ended_;
}

size_t LocalAnswer::kept_bytes() const {
  const std::lock_guard lock(mutex_);
  return kept_bytes_;
}

std::shared_ptr<LocalAnswer> LocalAnswers::find(uid_t uid, const RequestId& client_id) const {
  const auto at = by_key_.find({uid, client_id});
  return at == by_key_.end() ? nullptr : at->second->answer;
}

void LocalAnswers::add(uid_t uid, const RequestId& client_id, std::shared_ptr<LocalAnswer> answer,
                       int64_t now_ns) {
  size_t bytes = 0;
  for (const Kept& kept : answers_) bytes += kept.answer->kept_bytes();
  for (auto at = answers_.begin(); at != answers_.end();) {
    const bool over = answers_.size() >= kAnswersMax || bytes > kBytesMax;
    if (!over && now_ns - at->since_ns <= kKeptNs) break;
    if (!at->answer->ended()) {
      ++at;
      continue;
    }
    bytes -= at->answer->kept_bytes();
    by_key_.erase(at->key);
    at = answers_.erase(at);
  }
  Key key{uid, client_id};
  if (const auto known = by_key_.find(key); known != by_key_.end()) {
    answers_.erase(known->second);
    by_key_.erase(known);
  }
  answers_.push_back({key, std::move(answer), now_ns});
  by_key_.emplace(std::move(key), std::prev(answers_.end()));
}

}  // namespace updraft
