// PoolMessage -> FlatBuffers (schemas/pool.fbs). Always yields what codec.cpp accepts: text that a
// peer would refuse (cut characters, over-long errors) is repaired here, so that a stream is never
// lost over it.
#include <flatbuffers/flatbuffers.h>

#include <algorithm>
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

using Builder = fb::FlatBufferBuilder;
using Text = fb::Offset<fb::String>;

Text put(Builder& b, std::string_view text) { return b.CreateString(text.data(), text.size()); }

// Text made by a node: at most bytes_max, whole characters.
Text put_clean(Builder& b, std::string_view text, size_t bytes_max = kMessageBytesMax) {
  std::string repaired;
  if (!is_utf8(text)) {
    repaired = utf8_sanitized(text);
    text = repaired;
  }
  if (text.size() > bytes_max) {
    text = text.substr(0, bytes_max);
    text = text.substr(0, utf8_complete_prefix_bytes(text));
  }
  return put(b, text);
}

template <typename T>
fb::Offset<fb::Vector<T>> put_vector(Builder& b, const std::vector<T>& values) {
  return values.empty() ? 0 : b.CreateVector(values);
}
fb::Offset<fb::Vector<uint8_t>> put_bytes(Builder& b, const void* data, size_t size) {
  return size == 0 ? 0 : b.CreateVector(static_cast<const uint8_t*>(data), size);
}
fb::Offset<fb::Vector<Text>> put_texts(Builder& b, const std::vector<std::string>& texts) {
  std::vector<Text> offsets;
  offsets.reserve(texts.size());
  for (const std::string& text : texts) offsets.push_back(put(b, text));
  return offsets.empty() ? 0 : b.CreateVector(offsets);
}

fb::Offset<wire::Sampling> put(Builder& b, const Sampling& s) {
  std::vector<wire::LogitBias> biases;
  biases.reserve(s.logit_bias.size());
  for (const auto& [id, bias] : s.logit_bias) biases.emplace_back(id, bias);
  const auto bias_vector = biases.empty() ? 0 : b.CreateVectorOfStructs(biases);
  const auto stops = put_texts(b, s.stop);
  return wire::CreateSampling(b, s.temperature, s.top_p, s.top_k, s.min_p, s.repetition_penalty,
                              s.frequency_penalty, s.presence_penalty, bias_vector,
                              s.seed ? fb::Optional<uint64_t>(*s.seed) : fb::nullopt,
                              s.max_tokens ? fb::Optional<int32_t>(*s.max_tokens) : fb::nullopt,
                              stops, s.ignore_eos, s.logprobs, s.top_logprobs);
}

fb::Offset<wire::ChatMessage> put(Builder& b, const ChatMessage& message) {
  std::vector<fb::Offset<wire::ContentPart>> parts;
  parts.reserve(message.parts.size());
  for (const ContentPart& part : message.parts) {
    const auto text = put(b, part.text);
    const auto mime = put(b, part.mime);
    const auto bytes = put_bytes(b, part.bytes.data(), part.bytes.size());
    parts.push_back(wire::CreateContentPart(b, static_cast<uint8_t>(part.kind), text, mime, bytes));
  }
  const auto role = put(b, message.role);
  return wire::CreateChatMessage(b, role, b.CreateVector(parts));
}

fb::Offset<wire::Hints> put(Builder& b, const Hints& h) {
  const auto session = put(b, h.session);
  return wire::CreateHints(b, static_cast<uint8_t>(h.tier), h.local_only,
                           static_cast<uint8_t>(h.priority), session, h.deadline_ms);
}

fb::Offset<wire::PromptPart> put(Builder& b, const PromptPart& part) {
  const auto text = put(b, part.text);
  const auto ids = put_vector(b, part.ids);
  const EmbeddingRows& rows = part.rows;
  const auto bytes = put_bytes(b, rows.bytes.data(), rows.bytes.size());
  return wire::CreatePromptPart(b, static_cast<uint8_t>(part.kind), text, ids,
                                static_cast<uint8_t>(rows.type), rows.row_count, rows.dim, bytes);
}

fb::Offset<wire::Request> put(Builder& b, const Request& r) {
  std::vector<fb::Offset<wire::ChatMessage>> messages;
  for (const ChatMessage& message : r.messages) messages.push_back(put(b, message));
  std::vector<fb::Offset<wire::TokenIds>> id_lists;
  for (const std::vector<int32_t>& ids : r.prompt_ids) {
    id_lists.push_back(wire::CreateTokenIds(b, put_vector(b, ids)));
  }
  std::vector<fb::Offset<wire::PromptPart>> parts;
  for (const PromptPart& part : r.prompt_parts) parts.push_back(put(b, part));
  const auto id = put(b, r.id);
  const auto model = put(b, r.model);
  const auto message_vector = put_vector(b, messages);
  const auto prompts = put_texts(b, r.prompts);
  const auto prompt_ids = put_vector(b, id_lists);
  const auto sampling = put(b, r.sampling);
  const auto hints = put(b, r.hints);
  const auto tenant = put(b, r.tenant);
  const auto trace = put(b, r.trace);
  const auto trace_state = put(b, r.trace_state);
  const auto part_vector = put_vector(b, parts);
  return wire::CreateRequest(b, id, static_cast<uint8_t>(r.kind), model, message_vector, prompts,
                             prompt_ids, r.choice_count, r.echo, r.enable_thinking, sampling, hints,
                             tenant, trace, part_vector, trace_state);
}

fb::Offset<wire::RequestError> put(Builder& b, const RequestError& e) {
  const auto message = put_clean(b, e.message, kErrorBytes);
  const auto param = put_clean(b, e.param, kShortBytes);
  return wire::CreateRequestError(b, static_cast<uint8_t>(e.code), message, param,
                                  std::clamp(e.retry_after_ms, 0, kDayMs),
                                  std::max(e.prompt_tokens, 0), std::max(e.limit_tokens, 0));
}

fb::Offset<wire::Logprobs> put(Builder& b, const std::vector<PositionLogprobs>& positions) {
  std::vector<uint8_t> top_counts;
  std::vector<int32_t> ids;
  std::vector<float> values;
  std::vector<uint16_t> text_bytes;
  std::string text;
  const auto add = [&](const TokenLogprob& entry) {
    const size_t size = std::min<size_t>(entry.text.size(), std::numeric_limits<uint16_t>::max());
    ids.push_back(entry.id);
    values.push_back(entry.logprob);
    text_bytes.push_back(static_cast<uint16_t>(size));
    text.append(entry.text, 0, size);
  };
  for (const PositionLogprobs& position : positions) {
    const size_t top_count = std::min(position.top.size(), kTopLogprobs);
    top_counts.push_back(static_cast<uint8_t>(top_count));
    add(position.chosen);
    for (size_t i = 0; i < top_count; ++i) add(position.top[i]);
  }
  const auto count_vector = put_vector(b, top_counts);
  const auto id_vector = put_vector(b, ids);
  const auto value_vector = put_vector(b, values);
  const auto size_vector = put_vector(b, text_bytes);
  return wire::CreateLogprobs(b, count_vector, id_vector, value_vector, size_vector,
                              put_bytes(b, text.data(), text.size()));
}

fb::Offset<wire::TokenChunk> put(Builder& b, const TokenChunk& chunk) {
  const auto ids = put_vector(b, chunk.ids);
  const auto text = put_clean(b, chunk.text);
  const auto logprobs = chunk.logprobs.empty() ? 0 : put(b, chunk.logprobs);
  return wire::CreateTokenChunk(
      b, chunk.choice, chunk.offset, ids, text, logprobs,
      chunk.finish ? fb::Optional<uint8_t>(static_cast<uint8_t>(*chunk.finish)) : fb::nullopt);
}

fb::Offset<fb::Vector<fb::Offset<wire::ModelInfo>>> put(Builder& b,
                                                        const std::vector<ModelInfo>& models) {
  std::vector<fb::Offset<wire::ModelInfo>> offsets;
  for (const ModelInfo& m : models) {
    const auto id = put(b, m.id);
    const auto digest = put(b, m.digest);
    const auto quantization = put(b, m.quantization);
    offsets.push_back(
        wire::CreateModelInfo(b, id, digest, quantization, m.context_tokens, m.created, m.images));
  }
  return b.CreateVector(offsets);
}

fb::Offset<void> put(Builder& b, const NodeHello& h) {
  const auto node_id = put(b, h.node_id);
  const auto models = put(b, h.models);
  const auto device = put_clean(b, h.device, kShortBytes);
  const auto version = put_clean(b, h.software_version, kShortBytes);
  return wire::CreateHello(b, h.protocol_version, node_id, h.boot_epoch,
                           static_cast<uint8_t>(h.tier), models, device, version, h.price,
                           h.wants_echo)
      .Union();
}
fb::Offset<wire::Credit> put(Builder& b, const std::optional<Credit>& c) {
  if (!c) return 0;
  return wire::CreateCredit(b, c->epoch, c->first, c->count, c->kv_tokens, c->ttl_ms);
}
fb::Offset<void> put(Builder& b, const NodeBeat& n) {
  const auto credit = put(b, n.credit);
  fb::Offset<wire::PrefixDelta> prefixes = 0;
  if (n.prefixes) {
    const auto added = put_vector(b, n.prefixes->added);
    const auto dropped = put_vector(b, n.prefixes->dropped);
    prefixes =
        wire::CreatePrefixDelta(b, n.prefixes->generation, n.prefixes->since, added, dropped);
  }
  return wire::CreateBeat(b, n.boot_epoch, n.seq, n.sender_mono_ns, n.interval_ms, n.lease_ttl_ms,
                          static_cast<uint8_t>(n.state), n.slots_total, n.slots_free, n.running,
                          n.waiting, n.kv_tokens_total, n.kv_tokens_free, n.prefill_tokens_queued,
                          n.decode_tokens_reserved, n.prefill_tokens_per_s, n.decode_tokens_per_s,
                          n.bytes_per_token, n.requests_done, n.requests_failed, n.cpu_load,
                          n.memory_free_bytes, n.memory_total_bytes, n.last_assignment_seq,
                          n.kv_tokens_cached, credit, prefixes)
      .Union();
}
fb::Offset<void> put(Builder& b, const Submit& m) {
  return wire::CreateSubmit(b, put(b, m.request), m.epoch, m.assignment_seq, m.slots).Union();
}
fb::Offset<void> put(Builder& b, const Accepted& m) {
  const auto id = put(b, m.id);
  const auto node_id = put_clean(b, m.started.node_id, kShortBytes);
  const auto model = put_clean(b, m.started.model, RequestLimits::kNameBytes);
  const auto decision = put_clean(b, m.started.decision, kShortBytes);
  const auto started = wire::CreateStarted(b, node_id, static_cast<uint8_t>(m.started.tier), model,
                                           decision, m.started.prompt_tokens);
  return wire::CreateAccepted(b, id, m.epoch, m.prompt_tokens, started, m.held_us).Union();
}
fb::Offset<void> put(Builder& b, const Rejected& m) {
  const auto id = put(b, m.id);
  const auto error = put(b, m.error);
  return wire::CreateRejected(b, id, m.epoch, error, put(b, m.credit)).Union();
}
fb::Offset<void> put(Builder& b, const Tokens& m) {
  std::vector<fb::Offset<wire::TokenChunk>> chunks;
  chunks.reserve(m.chunks.size());
  for (const TokenChunk& chunk : m.chunks) chunks.push_back(put(b, chunk));
  const auto id = put(b, m.id);
  return wire::CreateTokens(b, id, m.epoch, b.CreateVector(chunks)).Union();
}
fb::Offset<void> put(Builder& b, const Done& m) {
  const auto id = put(b, m.id);
  const Usage& u = m.finished.usage;
  const Timings& t = m.finished.timings;
  return wire::CreateDone(b, id, m.epoch, u.prompt_tokens, u.completion_tokens, u.cached_tokens,
                          t.queued_ns, t.first_token_ns, t.total_ns, t.received_at_ns,
                          put(b, m.credit))
      .Union();
}
fb::Offset<void> put(Builder& b, const Failed& m) {
  const auto id = put(b, m.id);
  const auto error = put(b, m.error);
  return wire::CreateFailed(b, id, m.epoch, error, put(b, m.credit)).Union();
}
fb::Offset<void> put(Builder& b, const Cancel& m) {
  return wire::CreateCancel(b, put(b, m.id), m.epoch).Union();
}
fb::Offset<void> put(Builder& b, const Drain& m) {
  return wire::CreateDrain(b, m.grace_ms, m.resume).Union();
}
fb::Offset<void> put(Builder& b, const Welcome& m) {
  const auto id = put_clean(b, m.router_id, kShortBytes);
  return wire::CreateWelcome(b, id, m.router_epoch, put(b, m.pool_models), m.credits, m.echo_ms,
                             m.wanted_slots, m.wanted_kv_tokens)
      .Union();
}
fb::Offset<void> put(Builder& b, const Echo& m) { return wire::CreateEcho(b, m.beat_seq).Union(); }
fb::Offset<void> put(Builder& b, const Blob& m) {
  return wire::CreateBlob(b, m.stream, m.index, m.count,
                          put_bytes(b, m.bytes.data(), m.bytes.size()))
      .Union();
}

template <typename T>
constexpr wire::Message kWireType = wire::Message::NONE;
template <>
constexpr wire::Message kWireType<NodeHello> = wire::Message::Hello;
template <>
constexpr wire::Message kWireType<NodeBeat> = wire::Message::Beat;
template <>
constexpr wire::Message kWireType<Submit> = wire::Message::Submit;
template <>
constexpr wire::Message kWireType<Accepted> = wire::Message::Accepted;
template <>
constexpr wire::Message kWireType<Rejected> = wire::Message::Rejected;
template <>
constexpr wire::Message kWireType<Tokens> = wire::Message::Tokens;
template <>
constexpr wire::Message kWireType<Done> = wire::Message::Done;
template <>
constexpr wire::Message kWireType<Failed> = wire::Message::Failed;
template <>
constexpr wire::Message kWireType<Cancel> = wire::Message::Cancel;
template <>
constexpr wire::Message kWireType<Drain> = wire::Message::Drain;
template <>
constexpr wire::Message kWireType<Welcome> = wire::Message::Welcome;
template <>
constexpr wire::Message kWireType<Blob> = wire::Message::Blob;
template <>
constexpr wire::Message kWireType<Echo> = wire::Message::Echo;

}  // namespace

std::vector<std::byte> encode(const PoolMessage& message) {
  size_t size_hint = 512;
  if (const auto* blob = std::get_if<Blob>(&message)) size_hint += blob->bytes.size();
  Builder builder(size_hint);
  const auto body = std::visit([&](const auto& m) { return put(builder, m); }, message);
  const auto type =
      std::visit([](const auto& m) { return kWireType<std::decay_t<decltype(m)>>; }, message);
  wire::FinishFrameBuffer(builder, wire::CreateFrame(builder, type, body));
  const auto* begin = reinterpret_cast<const std::byte*>(builder.GetBufferPointer());
  return {begin, begin + builder.GetSize()};
}

}  // namespace updraft
