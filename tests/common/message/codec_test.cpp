// The pool's messages on the wire: every field survives the trip, and nothing that a peer sends can
// be read past its bytes or past its ranges.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "common/message/pool_message.h"
#include "common/message/request_check.h"

using namespace updraft;

namespace {

Request full_chat() {
  Request r;
  r.id = "0123456789abcdef0123456789abcdef";
  r.model = "qwen2.5-0.5b";
  r.messages = {
      {"system", {{ContentPart::Kind::kText, "Sei knapp. \xE4\xBD\xA0\xE5\xA5\xBD", "", ""}}},
      {"user",
       {{ContentPart::Kind::kImage, "", "image/png", std::string("\x89PNG\r\n\0\xFF", 8)},
        {ContentPart::Kind::kText, "What is this?", "", ""}}}};
  r.choice_count = 3;
  r.enable_thinking = false;
  r.sampling = Sampling{0.25F,
                        0.85F,
                        40,
                        0.05F,
                        1.1F,
                        0.2F,
                        -1.5F,
                        {{7, -100.0F}, {42, 3.5F}},
                        18446744073709551615ULL,
                        3000,
                        {"</answer>", "\n\n"},
                        true,
                        true,
                        5};
  r.hints = Hints{Tier::kCloud, true, Priority::kBulk, "session-1", 12345};
  r.tenant = "tenant-a";
  r.trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  r.trace_state = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";
  return r;
}

void check_equal(const Sampling& a, const Sampling& b) {
  CHECK(a.temperature == b.temperature);
  CHECK(a.top_p == b.top_p);
  CHECK(a.top_k == b.top_k);
  CHECK(a.min_p == b.min_p);
  CHECK(a.repetition_penalty == b.repetition_penalty);
  CHECK(a.frequency_penalty == b.frequency_penalty);
  CHECK(a.presence_penalty == b.presence_penalty);
  CHECK(a.logit_bias == b.logit_bias);
  CHECK(a.seed == b.seed);
  CHECK(a.max_tokens == b.max_tokens);
  CHECK(a.stop == b.stop);
  CHECK(a.ignore_eos == b.ignore_eos);
  CHECK(a.logprobs == b.logprobs);
  CHECK(a.top_logprobs == b.top_logprobs);
}

void check_equal(const Request& a, const Request& b) {
  CHECK(a.id == b.id);
  CHECK(a.kind == b.kind);
  CHECK(a.model == b.model);
  REQUIRE(a.messages.size() == b.messages.size());
  for (size_t i = 0; i < a.messages.size(); ++i) {
    CHECK(a.messages[i].role == b.messages[i].role);
    REQUIRE(a.messages[i].parts.size() == b.messages[i].parts.size());
    for (size_t j = 0; j < a.messages[i].parts.size(); ++j) {
      CHECK(a.messages[i].parts[j].kind == b.messages[i].parts[j].kind);
      CHECK(a.messages[i].parts[j].text == b.messages[i].parts[j].text);
      CHECK(a.messages[i].parts[j].mime == b.messages[i].parts[j].mime);
      CHECK(a.messages[i].parts[j].bytes == b.messages[i].parts[j].bytes);
    }
  }
  CHECK(a.prompts == b.prompts);
  CHECK(a.prompt_ids == b.prompt_ids);
  REQUIRE(a.prompt_parts.size() == b.prompt_parts.size());
  for (size_t i = 0; i < a.prompt_parts.size(); ++i) {
    const PromptPart& x = a.prompt_parts[i];
    const PromptPart& y = b.prompt_parts[i];
    CHECK(x.kind == y.kind);
    CHECK(x.text == y.text);
    CHECK(x.ids == y.ids);
    CHECK(x.rows.type == y.rows.type);
    CHECK(x.rows.row_count == y.rows.row_count);
    CHECK(x.rows.dim == y.rows.dim);
    CHECK(x.rows.bytes == y.rows.bytes);
  }
  CHECK(a.choice_count == b.choice_count);
  CHECK(a.echo == b.echo);
  CHECK(a.enable_thinking == b.enable_thinking);
  check_equal(a.sampling, b.sampling);
  CHECK(a.hints.tier == b.hints.tier);
  CHECK(a.hints.local_only == b.hints.local_only);
  CHECK(a.hints.priority == b.hints.priority);
  CHECK(a.hints.session == b.hints.session);
  CHECK(a.hints.deadline_ms == b.hints.deadline_ms);
  CHECK(a.tenant == b.tenant);
  CHECK(a.trace == b.trace);
  CHECK(a.trace_state == b.trace_state);
}

template <typename T>
T trip(const T& message) {
  const Result<PoolMessage> back = decode(encode(message));
  REQUIRE_MESSAGE(back.ok(), back.message());
  REQUIRE(std::holds_alternative<T>(*back));
  return std::get<T>(*back);
}

// Encoding does not check: a peer with a patched encoder could send this.
template <typename T>
std::string refusal(const T& message) {
  const Result<PoolMessage> back = decode(encode(message));
  return back ? "accepted" : back.message();
}

NodeBeat full_beat() {
  NodeBeat b;
  b.boot_epoch = 1790000000000;
  b.seq = 17;
  b.sender_mono_ns = 5'000'000'000;
  b.interval_ms = 100;
  b.lease_ttl_ms = 2000;
  b.state = NodeState::kDraining;
  b.slots_total = 8;
  b.slots_free = 3;
  b.running = 5;
  b.waiting = 2;
  b.kv_tokens_total = 65536;
  b.kv_tokens_free = 1024;
  b.kv_tokens_cached = 512;
  b.prefill_tokens_queued = 4000;
  b.decode_tokens_reserved = 9000;
  b.prefill_tokens_per_s = 812.5F;
  b.decode_tokens_per_s = 21.25F;
  b.bytes_per_token = 3.75F;
  b.requests_done = 1000;
  b.requests_failed = 3;
  b.cpu_load = 0.5F;
  b.memory_free_bytes = 1LL << 33;
  b.memory_total_bytes = 1LL << 34;
  b.last_assignment_seq = 99;
  b.credit = Credit{7, 40, 3, 900, 600};
  b.prefixes = PrefixDelta{12, 10, {1, ~uint64_t{0}}, {5}};
  return b;
}

// Text, ids and rows of two types.
Request parts_request() {
  Request r;
  r.id = "p1";
  r.kind = Request::Kind::kCompletion;
  PromptPart text;
  text.text = "se\xC3\xA9 ";
  PromptPart ids;
  ids.kind = PromptPart::Kind::kIds;
  ids.ids = {0, 151643};
  PromptPart wide;
  wide.kind = PromptPart::Kind::kEmbeddings;
  wide.rows = {EmbeddingRows::Type::kF32, 2, 3, std::string(24, '\x01')};
  PromptPart narrow = wide;
  narrow.rows = {EmbeddingRows::Type::kBF16, 1, 3, "abcdef"};
  r.prompt_parts = {text, wide, ids, narrow};
  return r;
}

TokenChunk full_chunk() {
  TokenChunk c;
  c.choice = 2;
  c.offset = 10;
  c.ids = {1, 151643};
  c.text = "\xC3\xA9t\xC3\xA9";
  c.logprobs = {{{1, -0.25F, "\xC3"}, {{1, -0.25F, "\xC3"}, {9, -1.5F, "x"}}},
                {{151643, -3.0F, ""}, {}}};
  c.finish = FinishReason::kLength;
  return c;
}

}  // namespace

TEST_CASE("a chat with image, hints and every sampling field survives the wire") {
  const Submit sent{full_chat(), 3, 77};
  const Submit got = trip(sent);
  CHECK(got.epoch == 3);
  CHECK(got.assignment_seq == 77);
  check_equal(got.request, sent.request);
}

TEST_CASE("absent optional fields stay absent, not zero") {
  Submit sent{full_chat(), 1, 0};
  sent.request.sampling = Sampling();
  const Submit got = trip(sent);
  CHECK_FALSE(got.request.sampling.seed.has_value());
  CHECK_FALSE(got.request.sampling.max_tokens.has_value());
  sent.request.sampling.seed = 0;
  CHECK(trip(sent).request.sampling.seed == uint64_t{0});
}

TEST_CASE("completions survive the wire as texts and as token ids") {
  Submit sent;
  sent.request.id = "c1";
  sent.request.kind = Request::Kind::kCompletion;
  sent.request.echo = true;
  sent.request.prompts = {"one", "", "drei"};
  check_equal(trip(sent).request, sent.request);
  sent.request.prompts.clear();
  sent.request.prompt_ids = {{1, 2, 3}, {2147483647}};
  check_equal(trip(sent).request, sent.request);
}

TEST_CASE("a prompt of parts survives the wire, with rows whose bytes come later, too") {
  Submit sent{parts_request(), 1, 0};
  check_equal(trip(sent).request, sent.request);
  sent.request.prompt_parts[1].rows.bytes = {};
  check_equal(trip(sent).request, sent.request);
  CHECK(has_embeddings(sent.request));
  sent.request.prompt_parts = {sent.request.prompt_parts[0], sent.request.prompt_parts[2]};
  sent.request.echo = true;
  check_equal(trip(sent).request, sent.request);
  CHECK_FALSE(has_embeddings(sent.request));
}

TEST_CASE("parts of a prompt that make no sense are refused by what is wrong with them") {
  const auto refused = [](auto&& change) {
    Submit s{parts_request(), 1, 0};
    change(s.request.prompt_parts, s.request);
    return refusal(s);
  };
  using Parts = std::vector<PromptPart>;
  const auto says = [](const std::string& text, const char* what) {
    CAPTURE(text);
    return text.find(what) != std::string::npos;
  };
  CHECK(refused([](Parts&, Request&) {}) == "accepted");
  CHECK(says(refused([](Parts& p, Request&) { p[1].rows.row_count = 0; }),
             "embedding rows = 0 is not in 1.."));
  CHECK(says(refused([](Parts& p, Request&) { p[1].rows.row_count = -2; }),
             "embedding rows = -2 is not in 1.."));
  CHECK(says(refused([](Parts& p, Request&) { p[1].rows.row_count = INT32_MAX; }),
             "embedding rows = 2147483647"));
  CHECK(says(refused([](Parts& p, Request&) { p[1].rows.dim = 0; }),
             "embedding values per row = 0 is not in 1.."));
  CHECK(says(refused([](Parts& p, Request&) { p[1].rows.dim = 1 << 18; }),
             "embedding values per row = 262144"));
  CHECK(says(refused([](Parts& p, Request&) { p[1].rows.dim = 4; }),
             "has 24 bytes, but 2 rows of 4 f32 values have 32"));
  CHECK(says(refused([](Parts& p, Request&) { p[3].rows.bytes = "abcde"; }),
             "has 5 bytes, but 1 rows of 3 bf16 values have 6"));
  CHECK(says(refused([](Parts& p, Request&) {
               for (PromptPart& part : p) {
                 if (part.kind == PromptPart::Kind::kEmbeddings)
                   part.rows = {EmbeddingRows::Type::kF32, 1 << 22, 1 << 17, {}};
               }
             }),
             "bytes of embeddings"));
  CHECK(says(
      refused([](Parts& p, Request&) { p[1].rows.type = static_cast<EmbeddingRows::Type>(3); }),
      "type = 3"));
  CHECK(says(refused([](Parts& p, Request&) { p[0].kind = static_cast<PromptPart::Kind>(3); }),
             "kind = 3"));
  CHECK(says(refused([](Parts& p, Request&) { p[0].text = "\xC0"; }), "UTF-8"));
  CHECK(says(refused([](Parts& p, Request&) { p[2].ids = {-1}; }), "ids = -1"));
  CHECK(says(refused([](Parts& p, Request&) { p[2].text = "x"; }), "two things at once"));
  CHECK(says(refused([](Parts& p, Request&) { p[0].rows.bytes = "x"; }), "two things at once"));
  CHECK(says(refused([](Parts&, Request& r) { r.prompts = {"x"}; }), "parts and something else"));
  CHECK(says(refused([](Parts&, Request& r) { r.echo = true; }), "echo"));
  CHECK(says(refused([](Parts&, Request& r) {
               r.kind = Request::Kind::kChat;
               r.messages = full_chat().messages;
             }),
             "does not belong into a chat"));
  CHECK(says(refused([](Parts& p, Request&) { p.resize(5000, p[0]); }), "has 5000 entries"));
}

TEST_CASE("tokens survive the wire with logprobs, partial characters and the finish reason") {
  const Tokens got = trip(Tokens{"r1", 2, {full_chunk(), TokenChunk{}}});
  REQUIRE(got.chunks.size() == 2);
  const TokenChunk want = full_chunk();
  const TokenChunk& c = got.chunks[0];
  CHECK(c.choice == want.choice);
  CHECK(c.offset == want.offset);
  CHECK(c.ids == want.ids);
  CHECK(c.text == want.text);
  CHECK(c.finish == want.finish);
  REQUIRE(c.logprobs.size() == 2);
  CHECK(c.logprobs[0].chosen.text == "\xC3");
  REQUIRE(c.logprobs[0].top.size() == 2);
  CHECK(c.logprobs[0].top[1].id == 9);
  CHECK(c.logprobs[0].top[1].logprob == -1.5F);
  CHECK(c.logprobs[0].top[1].text == "x");
  CHECK(c.logprobs[1].chosen.id == 151643);
  CHECK(c.logprobs[1].top.empty());
  CHECK_FALSE(got.chunks[1].finish.has_value());
  CHECK(got.epoch == 2);
}

TEST_CASE("the missing probability of an echoed prompt's first token survives the wire") {
  TokenChunk chunk = full_chunk();
  chunk.logprobs[0].chosen.logprob = std::numeric_limits<float>::quiet_NaN();
  const Tokens got = trip(Tokens{"r1", 2, {chunk}});
  REQUIRE(got.chunks.size() == 1);
  CHECK(std::isnan(got.chunks[0].logprobs[0].chosen.logprob));
  CHECK(got.chunks[0].logprobs[0].top[0].logprob == -0.25F);
}

TEST_CASE("hello and beat survive the wire") {
  NodeHello h;
  h.node_id = "edge-3";
  h.boot_epoch = 1790000000000;
  h.tier = Tier::kEdge;
  h.models = {{"tiny", "sha256:ab", "Q4_0", 8192, 1790000000, true}, {"b", "", "", 0, 0, false}};
  h.device = "cpu avx512 x2";
  h.software_version = "0.1.0";
  h.price = 2.5F;
  const NodeHello got = trip(h);
  CHECK(got.protocol_version == kPoolProtocolVersion);
  CHECK(got.node_id == h.node_id);
  CHECK(got.boot_epoch == h.boot_epoch);
  CHECK(got.tier == Tier::kEdge);
  REQUIRE(got.models.size() == 2);
  CHECK(got.models[0].id == "tiny");
  CHECK(got.models[0].digest == "sha256:ab");
  CHECK(got.models[0].quantization == "Q4_0");
  CHECK(got.models[0].context_tokens == 8192);
  CHECK(got.models[0].created == 1790000000);
  CHECK(got.models[0].images);
  CHECK(got.device == h.device);
  CHECK(got.software_version == h.software_version);
  CHECK(got.price == 2.5F);

  const NodeBeat b = full_beat();
  const NodeBeat back = trip(b);
  REQUIRE(back.credit);
  CHECK(back.credit->epoch == 7);
  CHECK(back.credit->first == 40);
  CHECK(back.credit->count == 3);
  CHECK(back.credit->kv_tokens == 900);
  CHECK(back.credit->ttl_ms == 600);
  REQUIRE(back.prefixes);
  CHECK(back.prefixes->generation == 12);
  CHECK(back.prefixes->since == 10);
  CHECK(back.prefixes->added == b.prefixes->added);
  CHECK(back.prefixes->dropped == b.prefixes->dropped);
  CHECK(back.boot_epoch == b.boot_epoch);
  CHECK(back.seq == b.seq);
  CHECK(back.sender_mono_ns == b.sender_mono_ns);
  CHECK(back.interval_ms == b.interval_ms);
  CHECK(back.lease_ttl_ms == b.lease_ttl_ms);
  CHECK(back.state == b.state);
  CHECK(back.slots_total == b.slots_total);
  CHECK(back.slots_free == b.slots_free);
  CHECK(back.running == b.running);
  CHECK(back.waiting == b.waiting);
  CHECK(back.kv_tokens_total == b.kv_tokens_total);
  CHECK(back.kv_tokens_free == b.kv_tokens_free);
  CHECK(back.kv_tokens_cached == b.kv_tokens_cached);
  CHECK(back.prefill_tokens_queued == b.prefill_tokens_queued);
  CHECK(back.decode_tokens_reserved == b.decode_tokens_reserved);
  CHECK(back.prefill_tokens_per_s == b.prefill_tokens_per_s);
  CHECK(back.decode_tokens_per_s == b.decode_tokens_per_s);
  CHECK(back.bytes_per_token == b.bytes_per_token);
  CHECK(back.requests_done == b.requests_done);
  CHECK(back.requests_failed == b.requests_failed);
  CHECK(back.cpu_load == b.cpu_load);
  CHECK(back.memory_free_bytes == b.memory_free_bytes);
  CHECK(back.memory_total_bytes == b.memory_total_bytes);
  CHECK(back.last_assignment_seq == b.last_assignment_seq);
}

TEST_CASE("the small messages survive the wire") {
  const Accepted a =
      trip(Accepted{"r1", 4, 123, {"cloud-1", Tier::kCloud, "m", "least wait", 123}});
  CHECK(a.id == "r1");
  CHECK(a.epoch == 4);
  CHECK(a.prompt_tokens == 123);
  CHECK(a.started.node_id == "cloud-1");
  CHECK(a.started.tier == Tier::kCloud);
  CHECK(a.started.model == "m");
  CHECK(a.started.decision == "least wait");
  CHECK(a.started.prompt_tokens == 123);

  const RequestError error{
      ErrorCode::kRejectedTooLong, "9000 tokens, 8192 fit", "messages", 1500, 9000, 8192};
  const Rejected r = trip(Rejected{"r2", 5, error});
  CHECK(r.id == "r2");
  CHECK(r.epoch == 5);
  CHECK(r.error.code == error.code);
  CHECK(r.error.message == error.message);
  CHECK(r.error.param == error.param);
  CHECK(r.error.retry_after_ms == 1500);
  CHECK(r.error.prompt_tokens == 9000);
  CHECK(r.error.limit_tokens == 8192);
  CHECK(trip(Failed{"r3", 1, error}).error.message == error.message);

  const Credit credit{3, 8, 2, 77, 500};
  CHECK(trip(Rejected{"r2", 5, error, credit}).credit->first == 8);
  CHECK(trip(Failed{"r3", 1, error, credit}).credit->count == 2);
  CHECK(trip(Done{"r4", 2, {}, credit}).credit->kv_tokens == 77);
  CHECK_FALSE(r.credit);
  CHECK(trip(Accepted{"r1", 4, 1, {}, 1500}).held_us == 1500);
  CHECK(trip(Submit{full_chat(), 2, 9, 4}).slots == 4);
  CHECK(trip(Welcome{"router", 42, {}, true}).credits);
  CHECK_FALSE(trip(Welcome{"router", 42, {}}).credits);
  CHECK(trip(Welcome{"router", 42, {}, true, 1000}).echo_ms == 1000);
  CHECK_FALSE(decode(encode(Welcome{"router", 42, {}, true, 60'001})).ok());
  CHECK(trip(Echo{77}).beat_seq == 77);
  NodeHello echoed;
  echoed.node_id = "n";
  CHECK_FALSE(trip(echoed).wants_echo);
  echoed.wants_echo = true;
  CHECK(trip(echoed).wants_echo);
  const Welcome wants = trip(Welcome{"router", 42, {}, true, 0, 3, 70'000});
  CHECK(wants.wanted_slots == 3);
  CHECK(wants.wanted_kv_tokens == 70'000);
  CHECK(trip(Welcome{"router", 42, {}, true}).wanted_slots == 0);

  const Done d = trip(Done{"r4", 2, {{10, 20, 5}, {1, 2, 3, 4}}});
  CHECK(d.finished.usage.prompt_tokens == 10);
  CHECK(d.finished.usage.completion_tokens == 20);
  CHECK(d.finished.usage.cached_tokens == 5);
  CHECK(d.finished.timings.queued_ns == 1);
  CHECK(d.finished.timings.first_token_ns == 2);
  CHECK(d.finished.timings.total_ns == 3);
  CHECK(d.finished.timings.received_at_ns == 4);

  CHECK(trip(Cancel{"r5", 6}).epoch == 6);
  CHECK(trip(Drain{1234}).grace_ms == 1234);
  CHECK_FALSE(trip(Drain{1234}).resume);
  CHECK(trip(Drain{0, true}).resume);
  const Welcome w = trip(Welcome{"router", 42, {{"m", "d", "q", 1, 2, false}}});
  CHECK(w.router_id == "router");
  CHECK(w.router_epoch == 42);
  REQUIRE(w.pool_models.size() == 1);
  CHECK(w.pool_models[0].id == "m");
  const Blob blob = trip(Blob{7, 1, 3, {std::byte{1}, std::byte{255}}});
  CHECK(blob.stream == 7);
  CHECK(blob.index == 1);
  CHECK(blob.count == 3);
  CHECK(blob.bytes == std::vector<std::byte>{std::byte{1}, std::byte{255}});
}

TEST_CASE("a beat that lies is refused by field and value") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  NodeBeat b = full_beat();
  b.slots_free = 9;
  CHECK(refusal(b) == "pool message Beat: slots_free = 9 is not in 0..8");
  b = full_beat(), b.slots_total = -1;
  CHECK(refusal(b).find("slots_total = -1") != std::string::npos);
  b = full_beat(), b.slots_total = std::numeric_limits<int32_t>::max();
  CHECK(refusal(b).find("slots_total = 2147483647") != std::string::npos);
  b = full_beat(), b.kv_tokens_total = std::numeric_limits<int64_t>::max();
  CHECK(refusal(b).find("kv_tokens_total") != std::string::npos);
  b = full_beat(), b.decode_tokens_per_s = nan;
  CHECK(refusal(b).find("decode_tokens_per_s = nan") != std::string::npos);
  b = full_beat(), b.prefill_tokens_per_s = inf;
  CHECK(refusal(b).find("prefill_tokens_per_s = inf") != std::string::npos);
  b = full_beat(), b.cpu_load = -0.5F;
  CHECK(refusal(b).find("cpu_load") != std::string::npos);
  b = full_beat(), b.lease_ttl_ms = 0;
  CHECK(refusal(b).find("lease_ttl_ms = 0") != std::string::npos);
  b = full_beat(), b.credit->count = -1;
  CHECK(refusal(b).find("credit.count = -1") != std::string::npos);
  CHECK(refusal(Welcome{"router", 1, {}, true, 0, -1}).find("wanted_slots = -1") != std::string::npos);
  CHECK(refusal(Welcome{"router", 1, {}, true, 0, 1, -5}).find("wanted_kv_tokens = -5") !=
        std::string::npos);
  b = full_beat(), b.credit->ttl_ms = 0;
  CHECK(refusal(b).find("credit.ttl_ms = 0") != std::string::npos);
  b = full_beat(), b.credit->first = ~uint64_t{0};
  CHECK(refusal(b).find("credit.first") != std::string::npos);
  b = full_beat(), b.credit->kv_tokens = -5;
  CHECK(refusal(b).find("credit.kv_tokens = -5") != std::string::npos);
  b = full_beat(), b.prefixes->added.resize(kPrefixesReported + 1);
  CHECK(refusal(b).find("prefixes.added") != std::string::npos);
  b = full_beat(), b.state = static_cast<NodeState>(9);
  CHECK(refusal(b).find("state = 9") != std::string::npos);
}

TEST_CASE("names, ids and enums out of range are refused") {
  NodeHello h;
  h.node_id = "Edge 3";
  CHECK(refusal(h).find("node_id \"Edge 3\"") != std::string::npos);
  h.node_id = std::string(65, 'a');
  CHECK(refusal(h).find("node_id") != std::string::npos);
  h.node_id = "a";
  h.models = {{"m\xFF", "", "", 0, 0, false}};
  CHECK(refusal(h) == "pool message Hello: model id is not valid UTF-8 at byte 1");
  h.models.assign(300, {"m", "", "", 0, 0, false});
  CHECK(refusal(h).find("models has 300 entries") != std::string::npos);
  CHECK(refusal(Cancel{std::string(65, 'x'), 1}).find("id has 65 bytes") != std::string::npos);
  CHECK(refusal(Cancel{"", 1}).find("id is empty") != std::string::npos);
  CHECK(refusal(Cancel{"x", 0}).find("epoch = 0") != std::string::npos);
  CHECK(refusal(Drain{-1}).find("grace_ms = -1") != std::string::npos);
  CHECK(
      refusal(Failed{"x", 1, {static_cast<ErrorCode>(200), "", "", 0, 0, 0}}).find("code = 200") !=
      std::string::npos);
  CHECK(refusal(Blob{1, 3, 3, {std::byte{0}}}).find("index = 3") != std::string::npos);
  CHECK(refusal(Blob{1, 0, 1, {}}).find("bytes is missing") != std::string::npos);
  CHECK(refusal(Blob{1, 0, 1000, {std::byte{0}}}).find("count = 1000") != std::string::npos);
  CHECK(refusal(Blob{1, 0, 1, std::vector<std::byte>(kChunkBytes + 1)}).find("bytes = 262145") !=
        std::string::npos);
  TokenChunk c;
  c.offset = -1;
  CHECK(refusal(Tokens{"x", 1, {c}}).find("offset = -1") != std::string::npos);
  c.offset = std::numeric_limits<int32_t>::max();
  c.ids = {1};
  CHECK(refusal(Tokens{"x", 1, {c}}).find("offset") != std::string::npos);
  c = full_chunk();
  c.logprobs[0].chosen.logprob = std::numeric_limits<float>::infinity();
  CHECK(refusal(Tokens{"x", 1, {c}}).find("logprobs.values = inf") != std::string::npos);
  c = full_chunk();
  c.ids[0] = -5;
  CHECK(refusal(Tokens{"x", 1, {c}}).find("ids = -5") != std::string::npos);
}

TEST_CASE("each request field out of range is refused with its name") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto refused = [](auto&& change) {
    Submit s{full_chat(), 1, 0};
    change(s.request);
    return refusal(s);
  };
  const auto names = [](const std::string& text, const char* field) {
    return text.find(field) != std::string::npos;
  };
  CHECK(names(refused([&](Request& r) { r.sampling.temperature = nan; }), "temperature = nan"));
  CHECK(names(refused([](Request& r) { r.sampling.temperature = -1; }), "temperature = -1"));
  CHECK(names(refused([](Request& r) { r.sampling.temperature = 1e30F; }), "temperature"));
  CHECK(names(refused([](Request& r) { r.sampling.top_p = 0; }), "top_p"));
  CHECK(names(refused([](Request& r) { r.sampling.top_k = -1; }), "top_k = -1"));
  CHECK(names(refused([](Request& r) { r.sampling.min_p = 2; }), "min_p"));
  CHECK(
      names(refused([](Request& r) { r.sampling.repetition_penalty = 0; }), "repetition_penalty"));
  CHECK(
      names(refused([&](Request& r) { r.sampling.frequency_penalty = nan; }), "frequency_penalty"));
  CHECK(names(refused([](Request& r) { r.sampling.presence_penalty = 2.5F; }), "presence_penalty"));
  CHECK(names(refused([](Request& r) { r.sampling.logit_bias = {{-1, 0.0F}}; }), "logit_bias"));
  CHECK(names(refused([&](Request& r) { r.sampling.logit_bias = {{1, nan}}; }), "logit_bias"));
  CHECK(names(refused([](Request& r) { r.sampling.max_tokens = 0; }), "max_tokens = 0"));
  CHECK(names(refused([](Request& r) { r.sampling.stop = {""}; }), "stop"));
  CHECK(names(refused([](Request& r) { r.sampling.stop.assign(17, "x"); }), "stop has 17"));
  CHECK(names(refused([](Request& r) { r.sampling.top_logprobs = 21; }), "top_logprobs = 21"));
  CHECK(names(refused([](Request& r) { r.choice_count = 9; }), "n = 9"));
  CHECK(names(refused([](Request& r) { r.id = "a b"; }), "id"));
  CHECK(names(refused([](Request& r) { r.messages.clear(); }), "messages is empty"));
  CHECK(names(refused([](Request& r) { r.messages[0].role = "root"; }), "role \"root\""));
  CHECK(names(refused([](Request& r) { r.messages[0].parts[0].text = "\xC0"; }), "UTF-8"));
  CHECK(names(refused([](Request& r) { r.messages[1].parts[0].mime = "image/gif"; }), "image/gif"));
  CHECK(names(refused([](Request& r) { r.messages[1].parts[0].bytes = {}; }), "empty image"));
  CHECK(names(refused([](Request& r) { r.prompts = {"x"}; }), "prompt"));
  CHECK(names(refused([](Request& r) { r.hints.deadline_ms = -1; }), "deadline_ms = -1"));
  CHECK(names(refused([](Request& r) { r.hints.session = std::string(2000, 's'); }),
              "session has 2000"));
  CHECK(names(refused([](Request& r) { r.hints.tier = static_cast<Tier>(7); }), "tier = 7"));
  CHECK(names(refused([](Request& r) { r.hints.priority = static_cast<Priority>(4); }),
              "priority = 4"));
  CHECK(names(refused([](Request& r) { r.kind = static_cast<Request::Kind>(2); }), "kind = 2"));
  CHECK(refused([](Request&) {}) == "accepted");
}

TEST_CASE("a payload over the limit is the typed answer, not a message nobody can read") {
  Request r = full_chat();
  r.messages[1].parts[0].bytes = std::string(RequestLimits::kPayloadBytes, 'x');
  const auto error = check_request(r);
  REQUIRE(error.has_value());
  CHECK(error->code == ErrorCode::kPayloadTooLarge);
  r.messages[1].parts[0].bytes = std::string(RequestLimits::kPayloadBytes - 1000, 'x');
  CHECK_FALSE(check_request(r).has_value());
  CHECK(encode(Submit{r, 1, 0}).size() < kMessageBytesMax);
}

TEST_CASE("raw frames and rows may be larger than a message as long as they stay on their node") {
  Request frame = full_chat();
  frame.messages[1].parts[0].mime = "image/x-raw-rgb;width=3840;height=2160";
  frame.messages[1].parts[0].bytes = std::string(size_t{3} * 3840 * 2160, 'x');
  Request rows = parts_request();
  rows.prompt_parts[1].rows = {EmbeddingRows::Type::kF32, 6000, 1024,
                               std::string(size_t{6000} * 1024 * 4, 'x')};
  for (const Request& request : {frame, rows}) {
    const auto stays = check_request(request);
    CHECK_MESSAGE(!stays, stays.value_or(RequestError()).message);
    const auto error = check_crossing(request);
    REQUIRE(error.has_value());
    CHECK(error->code == ErrorCode::kPayloadTooLarge);
    CHECK(error->message.find("between nodes") != std::string::npos);
    CHECK_FALSE(decode(encode(Submit{request, 1, 0})).ok());
  }
  frame.messages[1].parts[0].bytes = std::string(RequestLimits::kPayloadBytes - 1000, 'x');
  CHECK_FALSE(check_crossing(frame).has_value());
  // Text does not hide behind a frame.
  frame.messages[0].parts[0].text = std::string(RequestLimits::kPayloadBytes + 1, 'x');
  CHECK(check_request(frame)->code == ErrorCode::kPayloadTooLarge);
}

TEST_CASE("text that a peer would refuse is repaired by the encoder") {
  TokenChunk c;
  c.text = "ab\xC3";
  CHECK(trip(Tokens{"x", 1, {c}}).chunks[0].text == "ab\xEF\xBF\xBD");
  const RequestError error{
      ErrorCode::kInternal, std::string(4095, 'e') + "\xC3\xA9", "", -5, -1, -1};
  const Failed back = trip(Failed{"x", 1, error});
  CHECK(back.error.message == std::string(4095, 'e'));
  CHECK(back.error.retry_after_ms == 0);
}

TEST_CASE("truncated and flipped frames end in an error or in values within their ranges") {
  std::mt19937 random(20261120);
  const PoolMessage messages[] = {Submit{full_chat(), 1, 2}, Tokens{"r1", 2, {full_chunk()}},
                                  full_beat(),
                                  Welcome{"router", 42, {{"m", "d", "q", 1, 2, false}}},
                                  Blob{7, 1, 3, std::vector<std::byte>(100)}};
  for (const PoolMessage& message : messages) {
    const std::vector<std::byte> whole = encode(message);
    // At least the last table is cut off. (A tail of padding may go unnoticed.)
    for (size_t size = 0; size + 8 < whole.size(); ++size) {
      CHECK_FALSE(decode(ByteView(whole).first(size)).ok());
    }
    for (int round = 0; round < 3000; ++round) {
      std::vector<std::byte> bent = whole;
      const int flips = 1 + static_cast<int>(random() % 4);
      for (int i = 0; i < flips; ++i)
        bent[random() % bent.size()] ^= static_cast<std::byte>(1U << (random() % 8));
      const Result<PoolMessage> got = decode(bent);
      if (!got) {
        CHECK_FALSE(got.message().empty());
      } else {
        CHECK(decode(encode(*got)).ok());
      }
    }
  }
}

TEST_CASE("frames that are not ours are refused") {
  CHECK_FALSE(decode({}).ok());
  CHECK_FALSE(decode(as_bytes_view("GET / HTTP/1.1\r\nHost: x\r\n\r\n")).ok());
  std::vector<std::byte> other = encode(full_beat());
  other[4] = std::byte{'X'};  // the file identifier
  CHECK_FALSE(decode(other).ok());
  const std::vector<std::byte> zeros(kMessageBytesMax + 1);
  CHECK(decode(zeros).message().find("bytes") != std::string::npos);
}

TEST_CASE("an unaligned frame is read as well") {
  const std::vector<std::byte> whole = encode(full_beat());
  std::vector<std::byte> shifted(whole.size() + 1);
  std::memcpy(shifted.data() + 1, whole.data(), whole.size());
  CHECK(decode(ByteView(shifted).subspan(1)).ok());
}

TEST_CASE("many small fields that share one large vector are refused before they are copied") {
  // Two prompts of 1,000 bytes; the second string's offset is bent to the first one's bytes often
  // enough in random flips, here it is done on purpose: both vector entries point at the same
  // string.
  Submit s;
  s.request.id = "x";
  s.request.kind = Request::Kind::kCompletion;
  s.request.prompts.assign(1000, std::string());
  s.request.prompts[999] = std::string(60'000, 'p');
  std::vector<std::byte> frame = encode(s);
  // Entries of the prompt vector are relative offsets: find the last entry (it leads to the 60,000
  // bytes) and let all others lead there as well.
  const std::string_view text = as_text(frame);
  const size_t string_at = text.find(std::string(100, 'p')) - sizeof(uint32_t);
  size_t vector_at = 0;
  for (size_t at = 0; at + 4 + 4000 <= frame.size() && vector_at == 0; at += 4) {
    if (load_le<uint32_t>(frame.data() + at) == 1000 &&
        at + 4 + 999 * 4 + load_le<uint32_t>(frame.data() + at + 4 + 999 * 4) == string_at) {
      vector_at = at + 4;
    }
  }
  REQUIRE(vector_at > 0);
  for (size_t i = 0; i < 1000; ++i) {
    const auto offset = static_cast<uint32_t>(string_at - (vector_at + i * 4));
    std::memcpy(frame.data() + vector_at + i * 4, &offset, sizeof offset);
  }
  CHECK(decode(frame).message().find("larger than the frame") != std::string::npos);
}
