// Names of architectures and the checks between hyperparameters.
#include "common/model/hyperparameters.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "common/base/bytes.h"

namespace updraft {
namespace {

constexpr std::array<const char*, 5> kArchitectureNames = {"llama", "qwen2", "qwen3", "glm4",
                                                           "chatglm"};

std::string number_text(double value) {
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return buffer;
}

}  // namespace

const char* architecture_name(Architecture architecture) {
  return kArchitectureNames[static_cast<size_t>(architecture)];
}

std::optional<Architecture> architecture_from_name(std::string_view name) {
  for (size_t i = 0; i < kArchitectureNames.size(); ++i) {
    if (name == kArchitectureNames[i]) return static_cast<Architecture>(i);
  }
  return std::nullopt;
}

std::string unsupported_architecture(std::string_view name) {
  std::string out = "architecture \"" + printable(name) + "\" is not supported (supported:";
  for (const char* known : kArchitectureNames) out += std::string(" ") + known;
  return out + ")";
}

int32_t extended_context_tokens(const Hyperparameters& h) {
  if (h.rope_scaling.kind != RopeScaling::Kind::kYarn) return h.context_tokens;
  const double extended =
      static_cast<double>(h.rope_scaling.original_context_tokens) * h.rope_scaling.factor;
  const double limit = std::max<double>(h.context_tokens, kContextTokensMax);
  return static_cast<int32_t>(std::clamp<double>(extended, h.context_tokens, limit));
}

Result<void> check_hyperparameters(const Hyperparameters& h, const HyperparameterNames& names) {
  if (h.head_count % h.kv_head_count != 0) {
    return fail(names.kv_head_count + " " + std::to_string(h.kv_head_count) + " does not divide " +
                names.head_count + " " + std::to_string(h.head_count));
  }
  if (h.rope_dims < 2) {
    return fail(names.rope_dims + " " + std::to_string(h.rope_dims) + " is less than one pair");
  }
  if (h.rope_dims % 2 != 0) {
    return fail(names.rope_dims + " " + std::to_string(h.rope_dims) + " is odd");
  }
  if (h.rope_dims > h.head_dim) {
    return fail(names.rope_dims + " " + std::to_string(h.rope_dims) + " is larger than " +
                names.head_dim + " " + std::to_string(h.head_dim));
  }
  const int64_t pairs =
      std::accumulate(h.mrope_sections.begin(), h.mrope_sections.end(), int64_t{0});
  if (pairs != 0 && 2 * pairs != h.rope_dims) {
    return fail(names.mrope_sections + " sum to " + std::to_string(pairs) + " pairs, " +
                names.rope_dims + " " + std::to_string(h.rope_dims) + " needs " +
                std::to_string(h.rope_dims / 2));
  }
  const RopeScaling& scaling = h.rope_scaling;
  if (scaling.kind == RopeScaling::Kind::kNone) return {};
  if (!std::isfinite(scaling.factor) || scaling.factor < 1.0F) {
    return fail(names.rope_factor + " " + number_text(scaling.factor) +
                " is not a number of at least 1");
  }
  if (scaling.kind == RopeScaling::Kind::kLlama3 &&
      !(scaling.low_freq_factor < scaling.high_freq_factor)) {
    return fail(names.rope_prefix + "low_freq_factor " + number_text(scaling.low_freq_factor) +
                " is not below high_freq_factor " + number_text(scaling.high_freq_factor));
  }
  if (scaling.kind == RopeScaling::Kind::kYarn && !(scaling.beta_slow < scaling.beta_fast)) {
    return fail(names.rope_prefix + "beta_slow " + number_text(scaling.beta_slow) +
                " is not below beta_fast " + number_text(scaling.beta_fast));
  }
  return {};
}

}  // namespace updraft
