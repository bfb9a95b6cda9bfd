// Random model files: shapes, the synthetic vocabulary, and blocks filled straight with random
// quants under a scale that gives the wanted deviation (no quantiser runs, so it is as fast as the
// disk).
#include "tools/bench/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/model/hyperparameters.h"
#include "common/text/bpe_tokenizer.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/quant/block_layout.h"
#include "tools/convert/gguf_layout.h"

namespace updraft {
namespace {

constexpr int32_t kVocabMin = 512;
constexpr int64_t kChunkBlocks = 1024;      // one generator's run, the same for every thread count
constexpr uint64_t kSlabBytes = 32U << 20;  // made in memory, then written

// xoshiro256++ (Blackman and Vigna), seeded by splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9E3779B97F4A7C15ULL;
      uint64_t z = seed;
      z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
      z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
      word = z ^ (z >> 31);
    }
  }
  uint64_t next() {
    const uint64_t result = rotate(state_[0] + state_[3], 23) + state_[0];
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate(state_[3], 45);
    return result;
  }
  // In [-1, 1).
  float symmetric() { return static_cast<float>(static_cast<int32_t>(next() >> 32)) * 0x1p-31F; }
  void fill(std::byte* at, size_t bytes) {
    for (; bytes >= 8; at += 8, bytes -= 8) {
      const uint64_t word = next();
      std::memcpy(at, &word, 8);
    }
    const uint64_t word = next();
    std::memcpy(at, &word, bytes);
  }

 private:
  static uint64_t rotate(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }
  uint64_t state_[4];
};

void store_half(std::byte* at, float value) {
  const uint16_t half = float_to_half(value);
  std::memcpy(at, &half, sizeof half);
}

// Deviation of a uniform quant with this many levels, step 1.
float uniform_deviation(int levels) {
  return std::sqrt((static_cast<float>(levels) * static_cast<float>(levels) - 1.0F) / 12.0F);
}

void fill_super_block(DType type, float deviation, Random& random, std::byte* block) {
  random.fill(block, static_cast<size_t>(dtype_info(type).block_bytes));
  if (type == DType::kQ6_K) {
    // Scales of either sign between half and the whole range.
    for (int s = 0; s < 16; ++s) {
      const int bits = byte_at(block + kQ6KScales, s);
      const int scale = 64 + (bits & 63);
      block[kQ6KScales + s] = static_cast<std::byte>((bits & 64) != 0 ? scale : -scale);
    }
    store_half(block + kQ6KD, deviation / (96.0F * uniform_deviation(64)));
    return;
  }
  const int levels = type == DType::kQ4_K ? 16 : 32;
  uint8_t scale[8];
  for (int s = 0; s < 8; ++s)
    scale[s] = static_cast<uint8_t>(32 | (byte_at(block + kKScales, s) & 31));
  pack_scale_mins(scale, scale, block + kKScales);
  const float d = deviation / (47.5F * uniform_deviation(levels));
  store_half(block, d);
  store_half(block + 2, d * static_cast<float>(levels - 1) / 2.0F);  // the min is the middle
}

void fill_block(DType type, float deviation, Random& random, std::byte* block) {
  const float sign = (random.next() & 1) != 0 ? 1.0F : -1.0F;
  switch (type) {
    case DType::kF32: {
      const float value = random.symmetric() * deviation * std::sqrt(3.0F);
      std::memcpy(block, &value, sizeof value);
      return;
    }
    case DType::kF16:
      return store_half(block, random.symmetric() * deviation * std::sqrt(3.0F));
    case DType::kBF16: {
      const uint16_t value = float_to_bf16(random.symmetric() * deviation * std::sqrt(3.0F));
      std::memcpy(block, &value, sizeof value);
      return;
    }
    case DType::kQ8_0:
      random.fill(block + kQ8_0Quants, 32);
      for (int i = 0; i < 32; ++i) {  // the format's quants end at -127
        if (block[kQ8_0Quants + i] == std::byte{0x80}) block[kQ8_0Quants + i] = std::byte{0x81};
      }
      return store_half(block, deviation / uniform_deviation(255));
    case DType::kQ4_0:
    case DType::kQ5_0:
      random.fill(block, static_cast<size_t>(dtype_info(type).block_bytes));
      // The quants' middle is half a step off zero; a random sign takes that out of the mean.
      return store_half(block,
                        sign * deviation / uniform_deviation(type == DType::kQ4_0 ? 16 : 32));
    case DType::kQ4_1:
    case DType::kQ5_1: {
      random.fill(block, static_cast<size_t>(dtype_info(type).block_bytes));
      const int levels = type == DType::kQ4_1 ? 16 : 32;
      const float d = deviation / uniform_deviation(levels);
      store_half(block, d);
      return store_half(block + 2, -d * static_cast<float>(levels - 1) / 2.0F);
    }
    default:
      return fill_super_block(type, deviation, random, block);
  }
}

bool is_norm(TensorRole role) {
  switch (role) {
    case TensorRole::kFinalNorm:
    case TensorRole::kAttnNorm:
    case TensorRole::kQNorm:
    case TensorRole::kKNorm:
    case TensorRole::kPostAttnNorm:
    case TensorRole::kFfnNorm:
    case TensorRole::kPostFfnNorm:
      return true;
    default:
      return false;
  }
}

std::vector<float> random_vector(const LayoutTensor& tensor, const Hyperparameters& h,
                                 uint64_t seed) {
  if (tensor.role == TensorRole::kRopeDivisors) return llama3_divisors(h);
  Random random(seed);
  std::vector<float> values(tensor.ne[0]);
  for (float& v : values) v = (is_norm(tensor.role) ? 1.0F : 0.0F) + 0.1F * random.symmetric();
  return values;
}

// Activations keep their size through a matrix with this deviation. Embeddings are small beside
// what the layers add, so that with a tied head the likeliest next token is not always the last
// one.
float matrix_deviation(const LayoutTensor& tensor) {
  if (tensor.role == TensorRole::kEmbedding || tensor.role == TensorRole::kHead) return 0.02F;
  return 1.0F / std::sqrt(static_cast<float>(tensor.ne[0]));
}

uint64_t seed_of(uint64_t seed, size_t tensor, uint64_t chunk) {
  return seed * 0xD1342543DE82EF95ULL + (static_cast<uint64_t>(tensor) << 40) + chunk;
}

class RandomWriter {
 public:
  RandomWriter(const RandomModelConfig& config, ThreadPool& pool, const Progress& progress)
      : config_(config), pool_(pool), progress_(progress) {
    const Hyperparameters& h = config.hyperparameters;
    parts_.head = !h.tied_embeddings;
    parts_.qkv_bias = h.architecture == Architecture::kQwen2;
    parts_.rope_divisors = h.rope_scaling.kind == RopeScaling::Kind::kLlama3;
    tensors_ = gguf_layout(h, parts_);
  }

  Result<void> write(const std::string& path) {
    declare();
    Result<void> done = writer_.begin(path);
    for (size_t i = 0; done && i < tensors_.size(); ++i) {
      done = tensors_[i].is_vector() ? write_vector(i) : write_matrix(i);
    }
    return done ? writer_.finish() : done;
  }

 private:
  void declare() {
    const Hyperparameters& h = config_.hyperparameters;
    set_model_keys(writer_, h, config_.name);
    writer_.set_u32("general.file_type", file_type_gguf_number(config_.file_type));
    writer_.set_u32("general.quantization_version", 2);
    set_tokenizer_keys(writer_, synthetic_tokenizer(h.architecture, h.vocab_count));
    const MixContext context{h.layer_count, h.tied_embeddings, false};
    for (const LayoutTensor& tensor : tensors_) {
      types_.push_back(is_quantisable(tensor.name, tensor.ne)
                           ? tensor_type(config_.file_type, tensor.name, tensor.ne[0], context)
                           : DType::kF32);
      writer_.add_tensor(tensor.name, types_.back(), tensor.ne);
    }
    for (size_t i = 0; i < tensors_.size(); ++i) total_bytes_ += writer_.tensor_bytes(i);
  }

  Result<void> put(ByteView bytes) {
    Result<void> written = writer_.write(bytes);
    done_bytes_ += bytes.size();
    if (progress_) progress_("writing random weights", done_bytes_, total_bytes_);
    return written;
  }

  Result<void> write_vector(size_t index) {
    const std::vector<float> values =
        random_vector(tensors_[index], config_.hyperparameters, seed_of(config_.seed, index, 0));
    return put(std::as_bytes(std::span(values)));
  }

  Result<void> write_matrix(size_t index) {
    const DType type = types_[index];
    const auto block_bytes = static_cast<uint64_t>(dtype_info(type).block_bytes);
    const uint64_t chunk_bytes = block_bytes * kChunkBlocks;
    const uint64_t slab_bytes = kSlabBytes / chunk_bytes * chunk_bytes;
    const float deviation = matrix_deviation(tensors_[index]);
    uint64_t left = writer_.tensor_bytes(index);
    for (uint64_t chunk_first = 0; left > 0; chunk_first += slab_bytes / chunk_bytes) {
      const uint64_t bytes = std::min(left, slab_bytes);
      slab_.resize(std::max<uint64_t>(slab_.size(), bytes));
      pool_.for_each(
          static_cast<int64_t>((bytes + chunk_bytes - 1) / chunk_bytes), [&](int64_t chunk, int) {
            const uint64_t at = static_cast<uint64_t>(chunk) * chunk_bytes;
            const uint64_t seed =
                seed_of(config_.seed, index, chunk_first + static_cast<uint64_t>(chunk));
            fill_random_blocks(type, deviation, seed,
                               std::span(slab_).subspan(at, std::min(chunk_bytes, bytes - at)));
          });
      if (auto written = put(std::span(slab_).first(bytes)); !written) return written;
      left -= bytes;
    }
    return {};
  }

  const RandomModelConfig& config_;
  ThreadPool& pool_;
  const Progress& progress_;
  LayoutParts parts_;
  std::vector<LayoutTensor> tensors_;
  std::vector<DType> types_;
  GgufWriter writer_;
  std::vector<std::byte> slab_;
  uint64_t done_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

Hyperparameters shape(Architecture architecture, int32_t layers, int32_t hidden, int32_t ff,
                      int32_t heads, int32_t kv_heads, int32_t head_dim, int32_t vocab) {
  Hyperparameters h;
  h.architecture = architecture;
  h.layer_count = layers;
  h.hidden_dim = hidden;
  h.ff_dim = ff;
  h.head_count = heads;
  h.kv_head_count = kv_heads;
  h.head_dim = head_dim;
  h.rope_dims = head_dim;
  h.vocab_count = vocab;
  h.tied_embeddings = true;
  return h;
}

std::vector<NamedShape> make_shapes() {
  Hyperparameters qwen25 = shape(Architecture::kQwen2, 24, 896, 4864, 14, 2, 64, 151936);
  qwen25.context_tokens = 32768;
  qwen25.norm_eps = 1e-6F;
  qwen25.rope_base = 1e6F;
  Hyperparameters qwen3 = shape(Architecture::kQwen3, 28, 1024, 3072, 16, 8, 128, 151936);
  qwen3.context_tokens = 40960;
  qwen3.norm_eps = 1e-6F;
  qwen3.rope_base = 1e6F;
  Hyperparameters llama32 = shape(Architecture::kLlama, 16, 2048, 8192, 32, 8, 64, 128256);
  llama32.context_tokens = 131072;
  llama32.norm_eps = 1e-5F;
  llama32.rope_base = 500000.0F;
  llama32.rope_scaling.kind = RopeScaling::Kind::kLlama3;
  llama32.rope_scaling.factor = 32.0F;
  llama32.rope_scaling.original_context_tokens = 8192;
  Hyperparameters llama15 = shape(Architecture::kLlama, 6, 288, 768, 6, 6, 48, 32000);
  llama15.context_tokens = 8192;
  llama15.norm_eps = 1e-5F;
  return {{"qwen2.5-0.5b", qwen25},
          {"qwen3-0.6b", qwen3},
          {"llama-3.2-1b", llama32},
          {"llama-15m", llama15}};
}

}  // namespace

const std::vector<NamedShape>& named_shapes() {
  static const std::vector<NamedShape> shapes = make_shapes();
  return shapes;
}

void fill_random_blocks(DType type, float deviation, uint64_t seed, std::span<std::byte> bytes) {
  const auto block_bytes = static_cast<size_t>(dtype_info(type).block_bytes);
  UPDRAFT_CHECK(bytes.size() % block_bytes == 0, "whole blocks");
  Random random(seed);
  for (size_t at = 0; at < bytes.size(); at += block_bytes)
    fill_block(type, deviation, random, bytes.data() + at);
}

TokenizerData synthetic_tokenizer(Architecture architecture, int32_t token_count) {
  UPDRAFT_CHECK(token_count >= kVocabMin);
  TokenizerData data;
  data.model = "gpt2";
  data.pre = "qwen2";
  if (architecture == Architecture::kLlama) data.pre = "llama-bpe";
  if (architecture == Architecture::kGlm4) data.pre = "glm4";
  if (architecture == Architecture::kChatglm) data.pre = "chatglm-bpe";
  for (int byte = 0; byte < 256; ++byte)
    data.tokens.push_back(byte_spelling(static_cast<uint8_t>(byte)));
  // Words of two letters, then of three, ...: each is a shorter one and a letter more.
  const auto words_end = static_cast<size_t>(token_count - 3);
  std::vector<std::string> shorter;
  for (char c = 'a'; c <= 'z'; ++c) shorter.emplace_back(1, c);
  while (data.tokens.size() < words_end) {
    std::vector<std::string> longer;
    for (const std::string& stem : shorter) {
      for (char c = 'a'; c <= 'z' && data.tokens.size() < words_end; ++c) {
        longer.push_back(stem + c);
        data.tokens.push_back(longer.back());
        data.merges.push_back(stem + " " + c);
      }
    }
    shorter = std::move(longer);
  }
  data.types.assign(data.tokens.size(), 1);
  for (const char* control : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    data.tokens.emplace_back(control);
    data.types.push_back(3);
  }
  data.bos_id = token_count - 3;
  data.padding_id = token_count - 3;
  data.eos_id = token_count - 1;
  data.add_bos = false;
  return data;
}

Result<void> write_random_model(const RandomModelConfig& config, const std::string& path,
                                const Progress& progress) {
  const Hyperparameters& h = config.hyperparameters;
  if (h.vocab_count < kVocabMin) {
    return fail("vocabulary of " + std::to_string(h.vocab_count) + " tokens, at least " +
                std::to_string(kVocabMin) + " are needed");
  }
  const auto checked = check_hyperparameters(
      h, {"head count", "key-value head count", "head dimension", "rotary dimensions",
          "rotary sections", "rotary factor", "rotary "});
  if (!checked) return checked.error();
  ThreadPool::Config threads;
  threads.thread_count =
      config.thread_count > 0 ? config.thread_count : static_cast<int>(process_cores().size());
  auto pool = ThreadPool::open(threads);
  if (!pool) return pool.error();
  return RandomWriter(config, **pool, progress).write(path);
}

}  // namespace updraft
