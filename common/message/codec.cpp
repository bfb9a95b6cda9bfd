// FlatBuffers (schemas/pool.fbs) -> PoolMessage. This file and codec_encode.cpp alone name the
// generated types. Trusts nothing: verify, then copy under a byte budget, then range-check every
// number.
#include <flatbuffers/flatbuffers.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "common/message/codec_limits.h"
#include "common/message/pool_message.h"
#include "common/message/request_check.h"
#include "schemas/pool_generated.h"

namespace updraft {
namespace {

namespace fb = flatbuffers;

using namespace codec;
using Text = fb::Offset<fb::String>;

// Copies out of a verified frame. The first problem stays and names message, field and value; what
// is read after it is thrown away. The byte budget stops a frame whose small fields all point at
// one large vector.
class Reader {
 public:
  Reader(const char* message, size_t budget_bytes)
      : message_(message), budget_bytes_(budget_bytes) {}

  bool ok() const { return problem_.empty(); }
  const std::string& problem() const { return problem_; }
  void refuse(const char* field, const std::string& why) {
    if (ok()) problem_ = std::string("pool message ") + message_ + ": " + field + " " + why;
  }

  template <typename T>
  T number(const char* field, T value, T min, T max) {
    if (!(value >= min && value <= max)) {  // NaN fails too
      refuse(field, "= " + std::to_string(value) + " is not in " + std::to_string(min) + ".." +
                        std::to_string(max));
    }
    return value;
  }
  template <typename E>
  E choice(const char* field, uint8_t value, E last) {
    return static_cast<E>(number<int>(field, value, 0, static_cast<int>(last)));
  }
  template <typename T>
  const T* table(const char* field, const T* value) {
    if (value == nullptr) refuse(field, "is missing");
    return value;
  }

  std::string text(const char* field, const fb::String* value, size_t bytes_max) {
    if (value == nullptr || !spend(field, value->size(), bytes_max)) return {};
    std::string out(value->data(), value->size());
    if (const size_t valid = utf8_valid_prefix_bytes(out); valid != out.size()) {
      refuse(field, "is not valid UTF-8 at byte " + std::to_string(valid));
    }
    return out;
  }
  std::string bytes(const char* field, const fb::Vector<uint8_t>* value, size_t bytes_max) {
    if (value == nullptr || !spend(field, value->size(), bytes_max)) return {};
    return {reinterpret_cast<const char*>(value->data()), value->size()};
  }
  template <typename T>
  std::vector<T> vector(const char* field, const fb::Vector<T>* value, size_t count_max) {
    if (value == nullptr || !spend(field, value->size() * sizeof(T), count_max * sizeof(T)))
      return {};
    // The verifier leaves it to the sender where the elements of 8 bytes lie: copied as bytes,
    // then.
    std::vector<T> out(value->size());
    if (!out.empty()) std::memcpy(out.data(), value->Data(), out.size() * sizeof(T));
    for (T& element : out) element = fb::EndianScalar(element);
    return out;
  }
  std::vector<int32_t> token_ids(const char* field, const fb::Vector<int32_t>* value) {
    std::vector<int32_t> ids = vector(field, value, kMessageBytesMax / sizeof(int32_t));
    for (const int32_t id : ids) number(field, id, 0, kIntMax);
    return ids;
  }
  // How many entries to read of a vector of tables.
  template <typename T>
  uint32_t count(const char* field, const fb::Vector<T>* value, size_t count_max) {
    if (value == nullptr || !ok()) return 0;
    if (value->size() > count_max) {
      refuse(field, "has " + std::to_string(value->size()) + " entries, at most " +
                        std::to_string(count_max));
      return 0;
    }
    return value->size();
  }

  RequestId id(const fb::String* value) {
    RequestId out = text("id", value, RequestLimits::kIdBytes);
    if (out.empty()) refuse("id", "is empty");
    return out;
  }
  uint32_t epoch(uint32_t value) {
    return number<uint32_t>("epoch", value, 1, std::numeric_limits<uint32_t>::max());
  }

 private:
  bool spend(const char* field, size_t size, size_t size_max) {
    if (size > size_max) {
      refuse(field, "has " + std::to_string(size) + " bytes, at most " + std::to_string(size_max) +
                        " are accepted");
    } else if (size > budget_bytes_) {
      refuse(field, "shares its bytes with other fields: the contents are larger than the frame");
    } else {
      budget_bytes_ -= size;
    }
    return ok();
  }

  const char* message_;
  size_t budget_bytes_;
  std::string problem_;
};

std::vector<std::string> read_texts(Reader& in, const char* field, const fb::Vector<Text>* texts,
                                    size_t count_max, size_t bytes_max) {
  std::vector<std::string> out;
  const uint32_t count = in.count(field, texts, count_max);
  for (uint32_t i = 0; i < count && in.ok(); ++i)
    out.push_back(in.text(field, texts->Get(i), bytes_max));
  return out;
}

Sampling read(Reader& in, const wire::Sampling& w) {
  Sampling s;
  s.temperature = w.temperature();
  s.top_p = w.top_p();
  s.top_k = w.top_k();
  s.min_p = w.min_p();
  s.repetition_penalty = w.repetition_penalty();
  s.frequency_penalty = w.frequency_penalty();
  s.presence_penalty = w.presence_penalty();
  const uint32_t bias_count = in.count("logit_bias", w.logit_bias(), RequestLimits::kLogitBiases);
  for (uint32_t i = 0; i < bias_count; ++i) {
    const wire::LogitBias* bias = w.logit_bias()->Get(i);
    s.logit_bias.emplace_back(bias->id(), bias->bias());
  }
  if (w.seed().has_value()) s.seed = *w.seed();
  if (w.max_tokens().has_value()) s.max_tokens = *w.max_tokens();
  s.stop = read_texts(in, "stop", w.stop(), RequestLimits::kStops, RequestLimits::kStopBytes);
  s.ignore_eos = w.ignore_eos();
  s.logprobs = w.logprobs();
  s.top_logprobs = w.top_logprobs();
  return s;
}

ContentPart read(Reader& in, const wire::ContentPart& w) {
  ContentPart part;
  part.kind = in.choice("kind", w.kind(), ContentPart::Kind::kImage);
  part.text = in.text("text", w.text(), RequestLimits::kPayloadBytes);
  part.mime = in.text("mime", w.mime(), kShortBytes);
  part.bytes = in.bytes("bytes", w.bytes(), RequestLimits::kPayloadBytes);
  return part;
}

PromptPart read(Reader& in, const wire::PromptPart& w) {
  PromptPart part;
  part.kind = in.choice("kind", w.kind(), PromptPart::Kind::kEmbeddings);
  part.text = in.text("text", w.text(), RequestLimits::kPayloadBytes);
  part.ids = in.token_ids("ids", w.ids());
  part.rows.type = in.choice("type", w.type(), EmbeddingRows::Type::kBF16);
  part.rows.row_count = w.row_count();
  part.rows.dim = w.dim();
  part.rows.bytes = in.bytes("bytes", w.bytes(), kMessageBytesMax);
  return part;
}

Request read(Reader& in, const wire::Request& w) {
  Request r;
  r.id = in.id(w.id());
  r.kind = in.choice("kind", w.kind(), Request::Kind::kCompletion);
  r.model = in.text("model", w.model(), RequestLimits::kNameBytes);
  const uint32_t message_count = in.count("messages", w.messages(), RequestLimits::kMessages);
  for (uint32_t i = 0; i < message_count && in.ok(); ++i) {
    const wire::ChatMessage* message = w.messages()->Get(i);
    ChatMessage& out = r.messages.emplace_back();
    out.role = in.text("role", message->role(), kShortBytes);
    const uint32_t part_count = in.count("parts", message->parts(), RequestLimits::kParts);
    for (uint32_t j = 0; j < part_count && in.ok(); ++j)
      out.parts.push_back(read(in, *message->parts()->Get(j)));
  }
  r.prompts =
      read_texts(in, "prompts", w.prompts(), RequestLimits::kPrompts, RequestLimits::kPayloadBytes);
  const uint32_t list_count = in.count("prompt_ids", w.prompt_ids(), RequestLimits::kPrompts);
  for (uint32_t i = 0; i < list_count && in.ok(); ++i) {
    r.prompt_ids.push_back(in.token_ids("prompt_ids", w.prompt_ids()->Get(i)->ids()));
  }
  const uint32_t piece_count = in.count("prompt_parts", w.prompt_parts(), RequestLimits::kParts);
  for (uint32_t i = 0; i < piece_count && in.ok(); ++i)
    r.prompt_parts.push_back(read(in, *w.prompt_parts()->Get(i)));
  r.choice_count = w.choice_count();
  r.echo = w.echo();
  r.enable_thinking = w.enable_thinking();
  if (w.sampling() != nullptr) r.sampling = read(in, *w.sampling());
  if (const wire::Hints* h = w.hints()) {
    r.hints.tier = in.choice("tier", h->tier(), Tier::kCloud);
    r.hints.local_only = h->local_only();
    r.hints.priority = in.choice("priority", h->priority(), Priority::kBulk);
    r.hints.session = in.text("session", h->session(), RequestLimits::kNameBytes);
    r.hints.deadline_ms = h->deadline_ms();
  }
  r.tenant = in.text("tenant", w.tenant(), RequestLimits::kNameBytes);
  r.trace = in.text("trace", w.trace(), RequestLimits::kNameBytes);
  r.trace_state = in.text("trace_state", w.trace_state(), RequestLimits::kNameBytes);
  if (!in.ok()) return r;
  if (const auto error = check_crossing(r)) in.refuse("request:", error->message);
  return r;
}

RequestError read(Reader& in, const wire::RequestError& w) {
  RequestError e;
  e.code = in.choice("code", w.code(), ErrorCode::kRejectedBusy);
  e.message = in.text("message", w.message(), kErrorBytes);
  e.param = in.text("param", w.param(), kShortBytes);
  e.retry_after_ms = in.number("retry_after_ms", w.retry_after_ms(), 0, kDayMs);
  e.prompt_tokens = in.number("prompt_tokens", w.prompt_tokens(), 0, kIntMax);
  e.limit_tokens = in.number("limit_tokens", w.limit_tokens(), 0, kIntMax);
  return e;
}

std::vector<PositionLogprobs> read(Reader& in, const wire::Logprobs& w) {
  constexpr size_t kAny = kMessageBytesMax;
  const std::vector<uint8_t> top_counts = in.vector("top_counts", w.top_counts(), kAny);
  const std::vector<int32_t> ids = in.token_ids("logprobs.ids", w.ids());
  const std::vector<float> values = in.vector("logprobs.values", w.values(), kAny / sizeof(float));
  const std::vector<uint16_t> sizes =
      in.vector("logprobs.text_bytes", w.text_bytes(), kAny / sizeof(uint16_t));
  const std::string text = in.bytes("logprobs.text", w.text(), kAny);
  std::vector<PositionLogprobs> out;
  size_t entry = 0;
  size_t text_at = 0;
  const auto next = [&] {
    TokenLogprob token;
    if (entry >= ids.size() || entry >= values.size() || entry >= sizes.size() ||
        sizes[entry] > text.size() - text_at) {
      in.refuse("logprobs", "has fewer entries than its top_counts tell");
      return token;
    }
    token.id = ids[entry];
    // -infinity is a token that was masked out, NaN the first of an echoed prompt.
    token.logprob = values[entry];
    if (!std::isnan(token.logprob)) {
      in.number("logprobs.values", token.logprob, -std::numeric_limits<float>::infinity(), 1.0F);
    }
    token.text = text.substr(text_at, sizes[entry]);
    text_at += sizes[entry++];
    return token;
  };
  for (size_t i = 0; i < top_counts.size() && in.ok(); ++i) {
    PositionLogprobs& position = out.emplace_back();
    position.chosen = next();
    const int top_count = in.number<int>("top_counts", top_counts[i], 0, kTopLogprobs);
    for (int k = 0; k < top_count && in.ok(); ++k) position.top.push_back(next());
  }
  if (entry != ids.size()) in.refuse("logprobs", "has more entries than its top_counts tell");
  return out;
}

TokenChunk read(Reader& in, const wire::TokenChunk& w) {
  TokenChunk c;
  c.choice = in.number("choice", w.choice(), 0, kChoicesMax - 1);
  c.offset = in.number("offset", w.offset(), 0, kIntMax);
  c.ids = in.token_ids("ids", w.ids());
  c.text = in.text("text", w.text(), kMessageBytesMax);
  if (w.logprobs() != nullptr) c.logprobs = read(in, *w.logprobs());
  if (w.finish().has_value()) c.finish = in.choice("finish", *w.finish(), FinishReason::kLength);
  if (int64_t{c.offset} + static_cast<int64_t>(c.ids.size()) > kIntMax)
    in.refuse("offset", "+ ids passes 2^31");
  return c;
}

std::vector<ModelInfo> read_models(Reader& in, const char* field,
                                   const fb::Vector<fb::Offset<wire::ModelInfo>>* models) {
  std::vector<ModelInfo> out;
  const uint32_t count = in.count(field, models, kModelsMax);
  for (uint32_t i = 0; i < count && in.ok(); ++i) {
    const wire::ModelInfo* w = models->Get(i);
    ModelInfo& m = out.emplace_back();
    m.id = in.text("model id", w->id(), RequestLimits::kNameBytes);
    if (m.id.empty()) in.refuse("model id", "is empty");
    m.digest = in.text("digest", w->digest(), kShortBytes);
    m.quantization = in.text("quantization", w->quantization(), kShortBytes);
    m.context_tokens = in.number("context_tokens", w->context_tokens(), 0, kContextMax);
    m.created = in.number("created", w->created(), int64_t{0}, kTimeMax);
    m.images = w->images();
  }
  return out;
}

PoolMessage read(Reader& in, const wire::Hello& w) {
  NodeHello h;
  h.protocol_version = in.number<uint32_t>("protocol_version", w.protocol_version(), 1, 1'000'000);
  h.node_id = in.text("node_id", w.node_id(), kShortBytes);
  if (!is_node_id(h.node_id))
    in.refuse("node_id", "\"" + printable(h.node_id) + "\" is not [a-z0-9-]{1,64}");
  h.boot_epoch = w.boot_epoch();
  h.tier = in.choice("tier", w.tier(), Tier::kCloud);
  h.models = read_models(in, "models", w.models());
  h.device = in.text("device", w.device(), kShortBytes);
  h.software_version = in.text("software_version", w.software_version(), kShortBytes);
  h.price = in.number("price", w.price(), 0.0F, 1e6F);
  h.wants_echo = w.wants_echo();
  return h;
}

std::optional<Credit> read_credit(Reader& in, const wire::Credit* w) {
  if (w == nullptr) return std::nullopt;
  Credit c;
  c.epoch = w->epoch();
  c.first = in.number("credit.first", w->first(), uint64_t{0}, kSlotsCountedMax);
  c.count = in.number("credit.count", w->count(), 0, kSequencesMax);
  c.kv_tokens = in.number("credit.kv_tokens", w->kv_tokens(), int64_t{0}, kTokensMax);
  c.ttl_ms = in.number("credit.ttl_ms", w->ttl_ms(), 1, kCreditMsMax);
  return c;
}

PoolMessage read(Reader& in, const wire::Beat& w) {
  constexpr float kRateMax = 1e9F;
  NodeBeat b;
  b.boot_epoch = w.boot_epoch();
  b.seq = w.seq();
  b.sender_mono_ns = in.number("sender_mono_ns", w.sender_mono_ns(), int64_t{0}, kTimeMax);
  b.interval_ms = in.number("interval_ms", w.interval_ms(), 1, 60'000);
  b.lease_ttl_ms = in.number("lease_ttl_ms", w.lease_ttl_ms(), 1, 600'000);
  b.state = in.choice("state", w.state(), NodeState::kDraining);
  b.slots_total = in.number("slots_total", w.slots_total(), 0, kSequencesMax);
  b.slots_free = in.number("slots_free", w.slots_free(), 0, b.slots_total);
  b.running = in.number("running", w.running(), 0, kSequencesMax);
  b.waiting = in.number("waiting", w.waiting(), 0, kSequencesMax);
  b.kv_tokens_total = in.number("kv_tokens_total", w.kv_tokens_total(), int64_t{0}, kTokensMax);
  b.kv_tokens_free = in.number("kv_tokens_free", w.kv_tokens_free(), int64_t{0}, b.kv_tokens_total);
  b.prefill_tokens_queued =
      in.number("prefill_tokens_queued", w.prefill_tokens_queued(), int64_t{0}, kTokensMax);
  b.decode_tokens_reserved =
      in.number("decode_tokens_reserved", w.decode_tokens_reserved(), int64_t{0}, kTokensMax);
  b.prefill_tokens_per_s =
      in.number("prefill_tokens_per_s", w.prefill_tokens_per_s(), 0.0F, kRateMax);
  b.decode_tokens_per_s = in.number("decode_tokens_per_s", w.decode_tokens_per_s(), 0.0F, kRateMax);
  b.bytes_per_token = in.number("bytes_per_token", w.bytes_per_token(), 0.0F, 1e6F);
  b.requests_done = in.number("requests_done", w.requests_done(), int64_t{0}, kTimeMax);
  b.requests_failed = in.number("requests_failed", w.requests_failed(), int64_t{0}, kTimeMax);
  b.cpu_load = in.number("cpu_load", w.cpu_load(), 0.0F, 1.0F);
  b.memory_free_bytes =
      in.number("memory_free_bytes", w.memory_free_bytes(), int64_t{0}, kBytesMax);
  b.memory_total_bytes =
      in.number("memory_total_bytes", w.memory_total_bytes(), int64_t{0}, kBytesMax);
  b.last_assignment_seq = w.last_assignment_seq();
  b.kv_tokens_cached =
      in.number("kv_tokens_cached", w.kv_tokens_cached(), int64_t{0}, b.kv_tokens_free);
  b.credit = read_credit(in, w.credit());
  if (const wire::PrefixDelta* p = w.prefixes()) {
    b.prefixes = PrefixDelta{p->generation(), p->since(),
                             in.vector("prefixes.added", p->added(), kPrefixesReported),
                             in.vector("prefixes.dropped", p->dropped(), kPrefixesReported)};
  }
  return b;
}

PoolMessage read(Reader& in, const wire::Submit& w) {
  Submit m;
  m.epoch = in.epoch(w.epoch());
  m.assignment_seq = w.assignment_seq();
  m.slots = in.number("slots", w.slots(), 0, kSequencesMax);
  if (const auto* request = in.table("request", w.request())) m.request = read(in, *request);
  return m;
}
PoolMessage read(Reader& in, const wire::Accepted& w) {
  Accepted m;
  m.id = in.id(w.id());
  m.epoch = in.epoch(w.epoch());
  m.prompt_tokens = in.number("prompt_tokens", w.prompt_tokens(), 0, kIntMax);
  if (const auto* s = in.table("started", w.started())) {
    m.started.node_id = in.text("node_id", s->node_id(), kShortBytes);
    m.started.tier = in.choice("tier", s->tier(), Tier::kCloud);
    m.started.model = in.text("model", s->model(), RequestLimits::kNameBytes);
    m.started.decision = in.text("decision", s->decision(), kShortBytes);
    m.started.prompt_tokens = in.number("started.prompt_tokens", s->prompt_tokens(), 0, kIntMax);
  }
  m.held_us = in.number("held_us", w.held_us(), 0, kIntMax);
  return m;
}
PoolMessage read(Reader& in, const wire::Rejected& w) {
  Rejected m;
  m.id = in.id(w.id());
  m.epoch = in.epoch(w.epoch());
  if (const auto* error = in.table("error", w.error())) m.error = read(in, *error);
  m.credit = read_credit(in, w.credit());
  return m;
}
PoolMessage read(Reader& in, const wire::Tokens& w) {
  Tokens m;
  m.id = in.id(w.id());
  m.epoch = in.epoch(w.epoch());
  const uint32_t count = in.count("chunks", w.chunks(), kTablesMax);
  for (uint32_t i = 0; i < count && in.ok(); ++i) m.chunks.push_back(read(in, *w.chunks()->Get(i)));
  return m;
}
PoolMessage read(Reader& in, const wire::Done& w) {
  Done m;
  m.id = in.id(w.id());
  m.epoch = in.epoch(w.epoch());
  Usage& u = m.finished.usage;
  u.prompt_tokens = in.number("prompt_tokens", w.prompt_tokens(), 0, kIntMax);
  u.completion_tokens = in.number("completion_tokens", w.completion_tokens(), 0, kIntMax);
  u.cached_tokens = in.number("cached_tokens", w.cached_tokens(), 0, kIntMax);
  Timings& t = m.finished.timings;
  t.queued_ns = in.number("queued_ns", w.queued_ns(), int64_t{0}, kTimeMax);
  t.first_token_ns = in.number("first_token_ns", w.first_token_ns(), int64_t{0}, kTimeMax);
  t.total_ns = in.number("total_ns", w.total_ns(), int64_t{0}, kTimeMax);
  t.received_at_ns = in.number("received_at_ns", w.received_at_ns(), int64_t{0}, kTimeMax);
  m.credit = read_credit(in, w.credit());
  return m;
}
PoolMessage read(Reader& in, const wire::Failed& w) {
  Failed m;
  m.id = in.id(w.id());
  m.epoch = in.epoch(w.epoch());
  if (const auto* error = in.table("error", w.error())) m.error = read(in, *error);
  m.credit = read_credit(in, w.credit());
  return m;
}
PoolMessage read(Reader& in, const wire::Cancel& w) {
  return Cancel{in.id(w.id()), in.epoch(w.epoch())};
}
PoolMessage read(Reader& in, const wire::Drain& w) {
  return Drain{in.number("grace_ms", w.grace_ms(), 0, kDayMs), w.resume()};
}
PoolMessage read(Reader& in, const wire::Welcome& w) {
  Welcome m;
  m.router_id = in.text("router_id", w.router_id(), kShortBytes);
  m.router_epoch = w.router_epoch();
  m.pool_models = read_models(in, "pool_models", w.pool_models());
  m.credits = w.credits();
  m.echo_ms = in.number("echo_ms", w.echo_ms(), 0, 60'000);
  m.wanted_slots = in.number("wanted_slots", w.wanted_slots(), 0, kSequencesMax);
  m.wanted_kv_tokens = in.number("wanted_kv_tokens", w.wanted_kv_tokens(), int64_t{0}, kTokensMax);
  return m;
}
PoolMessage read(Reader&, const wire::Echo& w) { return Echo{w.beat_seq()}; }
PoolMessage read(Reader& in, const wire::Blob& w) {
  constexpr uint32_t kPartsMax = kMessageBytesMax / kChunkBytes;
  Blob m;
  m.stream = w.stream();
  m.count = in.number<uint32_t>("count", w.count(), 1, kPartsMax);
  m.index = in.number<uint32_t>("index", w.index(), 0, m.count - 1);
  const fb::Vector<uint8_t>* bytes = in.table("bytes", w.bytes());
  if (bytes == nullptr || !in.ok()) return m;
  if (in.number<size_t>("bytes", bytes->size(), 1, kChunkBytes) == bytes->size() && in.ok()) {
    const auto* begin = reinterpret_cast<const std::byte*>(bytes->data());
    m.bytes.assign(begin, begin + bytes->size());
  }
  return m;
}

template <typename W>
Result<PoolMessage> read_as(const wire::Frame& frame, const char* name, size_t frame_bytes) {
  Reader in(name, frame_bytes);
  const auto* table = static_cast<const W*>(frame.message());
  PoolMessage message = table == nullptr ? PoolMessage() : read(in, *table);
  if (table == nullptr) in.refuse("body", "is missing");
  if (!in.ok()) return fail(in.problem());
  return message;
}

Result<PoolMessage> decode_aligned(ByteView bytes) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  fb::Verifier::Options options;
  options.max_depth = kDepthMax;
  options.max_tables = kTablesMax;
  fb::Verifier verifier(data, bytes.size(), options);
  if (!wire::VerifyFrameBuffer(verifier)) {
    return fail("pool message of " + std::to_string(bytes.size()) +
                " bytes is not a well-formed UPPL frame");
  }
  const wire::Frame& frame = *wire::GetFrame(data);
  switch (frame.message_type()) {
    case wire::Message::Hello:
      return read_as<wire::Hello>(frame, "Hello", bytes.size());
    case wire::Message::Beat:
      return read_as<wire::Beat>(frame, "Beat", bytes.size());
    case wire::Message::Submit:
      return read_as<wire::Submit>(frame, "Submit", bytes.size());
    case wire::Message::Accepted:
      return read_as<wire::Accepted>(frame, "Accepted", bytes.size());
    case wire::Message::Rejected:
      return read_as<wire::Rejected>(frame, "Rejected", bytes.size());
    case wire::Message::Tokens:
      return read_as<wire::Tokens>(frame, "Tokens", bytes.size());
    case wire::Message::Done:
      return read_as<wire::Done>(frame, "Done", bytes.size());
    case wire::Message::Failed:
      return read_as<wire::Failed>(frame, "Failed", bytes.size());
    case wire::Message::Cancel:
      return read_as<wire::Cancel>(frame, "Cancel", bytes.size());
    case wire::Message::Drain:
      return read_as<wire::Drain>(frame, "Drain", bytes.size());
    case wire::Message::Welcome:
      return read_as<wire::Welcome>(frame, "Welcome", bytes.size());
    case wire::Message::Blob:
      return read_as<wire::Blob>(frame, "Blob", bytes.size());
    case wire::Message::Echo:
      return read_as<wire::Echo>(frame, "Echo", bytes.size());
    case wire::Message::NONE:
      break;
  }
  return fail("pool message of kind " + std::to_string(static_cast<int>(frame.message_type())) +
              " is not known");
}

}  // namespace

Result<PoolMessage> decode(ByteView frame) {
  if (frame.empty() || frame.size() > kMessageBytesMax) {
    return fail("pool message has " + std::to_string(frame.size()) + " bytes, 1.." +
                std::to_string(kMessageBytesMax) + " are accepted");
  }
  constexpr size_t kAlignment = alignof(uint64_t);
  if (reinterpret_cast<uintptr_t>(frame.data()) % kAlignment == 0) return decode_aligned(frame);
  const std::vector<std::byte> aligned(frame.begin(), frame.end());
  return decode_aligned(aligned);
}

}  // namespace updraft
