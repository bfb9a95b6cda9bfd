// The nouns of a request: what a client asks, in OpenAI's meaning. Parsed once at the edge of the
// system (HTTP, shared memory), validated there, and handed on unchanged through every process to
// the engine that answers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/shared_bytes.h"

namespace updraft {

// Unique per request: 32 lower-case hex digits, made at the entrance (new_request_id()).
using RequestId = std::string;
RequestId new_request_id();

struct Sampling {
  float temperature = 1.0F;  // 0: greedy
  float top_p = 1.0F;        // (0, 1]
  int32_t top_k = 0;         // 0: off
  float min_p = 0.0F;        // [0, 1)
  float repetition_penalty =
      1.0F;  // > 0; 1: off. Divides positive and multiplies negative logits of seen tokens
  float frequency_penalty = 0.0F;  // [-2, 2]: logit -= penalty * count in the generated tokens
  float presence_penalty = 0.0F;   // [-2, 2]: logit -= penalty if generated before
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, [-100, 100] added
  std::optional<uint64_t>
      seed;  // deterministic per (seed, choice, position); absent: a fresh one is drawn
  std::optional<int32_t> max_tokens;  // > 0; absent: what the context leaves
  std::vector<std::string> stop;      // at most 16 strings, none empty; never part of the answer
  bool ignore_eos = false;
  bool logprobs = false;
  int32_t top_logprobs = 0;  // 0..20 alternatives per position
};

struct ContentPart {
  enum class Kind : uint8_t { kText, kImage };
  Kind kind = Kind::kText;
  std::string text;  // kText: UTF-8
  // kImage: "image/png", "image/jpeg", or raw pixels, "image/x-raw-rgb;width=W;height=H"
  // (image_info.h)
  std::string mime;
  SharedBytes bytes;  // kImage: the file; may lie in a local client's memory (shared_bytes.h)
};

// Rows of input embeddings: what the model's first layer takes in place of rows of its own table.
// They mean something to that model alone.
struct EmbeddingRows {
  enum class Type : uint8_t { kF32, kF16, kBF16 };
  Type type = Type::kF32;
  int32_t row_count = 0;
  int32_t dim = 0;    // values of one row; the model's hidden size
  SharedBytes bytes;  // [row_count, dim] little-endian; may lie in a local client's memory
};
const char* embedding_type_name(EmbeddingRows::Type type);  // "f32", "f16", "bf16"
size_t value_bytes(EmbeddingRows::Type type);
// What `bytes` must have, by the other fields.
int64_t embedding_bytes(const EmbeddingRows& rows);

// A piece of a prompt.
struct PromptPart {
  enum class Kind : uint8_t { kText, kIds, kEmbeddings };
  Kind kind = Kind::kText;
  std::string text;          // kText: UTF-8; special tokens written in it count
  std::vector<int32_t> ids;  // kIds
  EmbeddingRows rows;        // kEmbeddings; each row is one position
};

struct ChatMessage {
  std::string role;  // "system", "developer" (treated as system), "user", "assistant", "tool"
  std::vector<ContentPart> parts;
};

enum class Tier : uint8_t { kAny, kEdge, kCloud };
const char* tier_name(Tier tier);

enum class Priority : uint8_t { kSystem, kInteractive, kDefault, kBulk };

// Wishes that narrow the placement (x-updraft-* headers).
struct Hints {
  Tier tier = Tier::kAny;
  bool local_only = false;  // x-updraft-residency: local-only; never leaves the gateway
  Priority priority = Priority::kDefault;
  std::string session;      // sticky placement, may be empty
  int64_t deadline_ms = 0;  // time left for the whole answer at the moment of sending; 0: none
};

struct Request {
  enum class Kind : uint8_t { kChat, kCompletion };

  RequestId id;
  Kind kind = Kind::kChat;
  std::string model;                             // as the client named it; may be an alias
  std::vector<ChatMessage> messages;             // kChat, not empty
  std::vector<std::string> prompts;              // kCompletion as text; one choice group each
  std::vector<std::vector<int32_t>> prompt_ids;  // kCompletion as token ids; either this or prompts
  std::vector<PromptPart> prompt_parts;          // or one prompt, made of these in their order
  int32_t choice_count = 1;                      // `n` per prompt, 1..8
  bool echo = false;                             // kCompletion: the answer begins with the prompt
  bool enable_thinking = true;                   // chat_template_kwargs.enable_thinking (qwen3)
  Sampling sampling;
  Hints hints;
  // From authentication, never from the client's text: a digest of the API key, "uid:1000", and
  // "node/" before what a node called it. Salts the prefix cache.
  std::string tenant;
  std::string trace;        // W3C traceparent passed through, may be empty
  std::string trace_state;  // the tracestate that came with it, may be empty
};

// Bytes of text (not images) in the prompt; the router's estimate of prompt tokens is derived from
// it.
int64_t prompt_text_bytes(const Request& request);
// Choices in all: choice_count for each prompt.
int32_t total_choices(const Request& request);
bool has_image(const Request& request);
bool has_embeddings(const Request& request);

}  // namespace updraft
