// A GGUF file whose answer is written by the test. Its embedding is one-hot, its layer adds nothing
// and its head maps each token to one successor, so that the logits after token t are exactly
// sqrt(dim) for next(t) and 0 for all others. Token ids 0..255 are the bytes; then come the control
// tokens.
#pragma once

#include <doctest/doctest.h>

#include <array>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/bytes.h"
#include "common/model/gguf_writer.h"

namespace updraft::testing {

inline constexpr int32_t kImStart = 256;
inline constexpr int32_t kImEnd = 257;
inline constexpr int32_t kEndOfText = 258;
inline constexpr int32_t kTwoSpaces = 259;  // the one merged token
inline constexpr int32_t kTokenCount = 260;
inline constexpr int32_t kRowCount =
    264;  // the embedding table has rows without a token, as real ones do

struct Script {
  // Each byte is followed by the next one; no byte occurs twice as a predecessor. The answer to a
  // chat begins after the
  // "\n" that ends the template's "assistant\n".
  std::string bytes;
  bool ends = true;                 // the last byte is followed by <|im_end|>
  std::map<int32_t, int32_t> more;  // further successors
  int32_t context_tokens = 256;
  std::string chat_template;
};

// The characters that GPT-2's byte-level vocabulary spells the bytes with.
inline std::vector<std::string> byte_tokens() {
  std::vector<std::string> out(256);
  char32_t next = 256;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    append_utf8(out[byte], itself ? byte : next++);
  }
  return out;
}

inline std::string write_script_model(const std::string& path, const Script& script) {
  constexpr uint64_t kDim = kRowCount;
  std::map<int32_t, int32_t> next = script.more;
  for (size_t i = 0; i + 1 < script.bytes.size(); ++i) {
    const auto from = static_cast<int32_t>(static_cast<uint8_t>(script.bytes[i]));
    REQUIRE_MESSAGE(!next.contains(from), "a byte with two successors");
    next[from] = static_cast<uint8_t>(script.bytes[i + 1]);
  }
  if (script.ends) next[static_cast<uint8_t>(script.bytes.back())] = kImEnd;

  GgufWriter writer;
  writer.set_text("general.architecture", "llama");
  writer.set_text("general.name", "script");
  writer.set_u32("llama.block_count", 1);
  writer.set_u32("llama.context_length", static_cast<uint32_t>(script.context_tokens));
  writer.set_u32("llama.embedding_length", kDim);
  writer.set_u32("llama.feed_forward_length", 32);
  writer.set_u32("llama.attention.head_count", 1);
  writer.set_u32("llama.attention.key_length", 32);
  writer.set_u32("llama.attention.value_length", 32);
  writer.set_u32("llama.rope.dimension_count", 32);
  writer.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-9F);
  writer.set_text("tokenizer.ggml.model", "gpt2");
  writer.set_text("tokenizer.ggml.pre", "gpt-2");
  std::vector<std::string> tokens = byte_tokens();
  tokens.insert(tokens.end(), {"<|im_start|>", "<|im_end|>", "<|endoftext|>"});
  std::vector<int32_t> types(tokens.size(), 1);
  for (size_t i = 256; i < types.size(); ++i) types[i] = 3;
  tokens.push_back("\u0120\u0120");
  types.push_back(1);
  writer.set_texts("tokenizer.ggml.tokens", tokens);
  writer.set_i32s("tokenizer.ggml.token_type", types);
  writer.set_texts("tokenizer.ggml.merges", std::vector<std::string>{"\u0120 \u0120"});
  writer.set_u32("tokenizer.ggml.eos_token_id", kImEnd);
  if (!script.chat_template.empty())
    writer.set_text("tokenizer.chat_template", script.chat_template);

  struct Tensor {
    std::string name;
    uint64_t cols, rows;  // rows 0: a vector
    std::vector<float> values;
  };
  std::vector<Tensor> tensors;
  const auto zeros = [&](const std::string& name, uint64_t cols, uint64_t rows) {
    tensors.push_back({name, cols, rows, std::vector<float>(cols * rows, 0.0F)});
  };
  const auto ones = [&](const std::string& name) {
    tensors.push_back({name, kDim, 0, std::vector<float>(kDim, 1.0F)});
  };
  zeros("token_embd.weight", kDim, kRowCount);
  for (uint64_t i = 0; i < kDim; ++i) tensors.back().values[i * kDim + i] = 1.0F;
  ones("output_norm.weight");
  zeros("output.weight", kDim, kRowCount);
  for (const auto& [from, to] : next) {
    tensors.back().values[static_cast<uint64_t>(to) * kDim + static_cast<uint64_t>(from)] = 1.0F;
  }
  ones("blk.0.attn_norm.weight");
  ones("blk.0.ffn_norm.weight");
  for (const char* name : {"attn_q", "attn_k", "attn_v"})
    zeros("blk.0." + std::string(name) + ".weight", kDim, 32);
  zeros("blk.0.attn_output.weight", 32, kDim);
  zeros("blk.0.ffn_gate.weight", kDim, 32);
  zeros("blk.0.ffn_up.weight", kDim, 32);
  zeros("blk.0.ffn_down.weight", 32, kDim);
  for (const Tensor& tensor : tensors) {
    if (tensor.rows == 0) {
      writer.add_tensor(tensor.name, DType::kF32, {tensor.cols});
    } else {
      writer.add_tensor(tensor.name, DType::kF32, {tensor.cols, tensor.rows});
    }
  }
  const auto must = [](const Result<void>& result) {
    REQUIRE_MESSAGE(result.ok(), result.message());
  };
  must(writer.begin(path));
  for (const Tensor& tensor : tensors) must(writer.write(std::as_bytes(std::span(tensor.values))));
  must(writer.finish());
  return path;
}

}  // namespace updraft::testing
