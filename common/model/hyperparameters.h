// What both containers share about hyperparameters: the architectures' names, sane ranges, and the
// checks between fields.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "common/model/model.h"

namespace updraft {

// Ranges far above every published model. They keep all later products inside 64 bits.
inline constexpr int64_t kLayersMax = 4096;
inline constexpr int64_t kHiddenDimMax = 1 << 20;
inline constexpr int64_t kFfDimMax = 1 << 22;
inline constexpr int64_t kHeadsMax = 1 << 16;
inline constexpr int64_t kHeadDimMax = 1 << 13;
inline constexpr int64_t kVocabMax = 1 << 24;
inline constexpr int64_t kContextTokensMax = 1 << 30;

// general.architecture of GGUF: "llama", "qwen2", "qwen3", "glm4", "chatglm".
std::optional<Architecture> architecture_from_name(std::string_view name);
// `architecture "phi3" is not supported (supported: llama, ...)`.
std::string unsupported_architecture(std::string_view name);

// The context that yarn extends to, when the file gives the one before the extension; otherwise
// context_tokens itself.
int32_t extended_context_tokens(const Hyperparameters& h);

// The names a container gives to the fields that are checked against each other, for messages.
struct HyperparameterNames {
  std::string head_count, kv_head_count, head_dim, rope_dims, mrope_sections, rope_factor;
  std::string rope_prefix;  // in front of low_freq_factor, beta_slow and so on
};

// Checks between fields, once each is in its range: kv_head_count divides head_count, rope_dims
// even and at most head_dim, sections that cover rope_dims, sensible scaling. The message names the
// fields by `names`.
Result<void> check_hyperparameters(const Hyperparameters& h, const HyperparameterNames& names);

}  // namespace updraft
