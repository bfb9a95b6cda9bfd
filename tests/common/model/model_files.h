// Builders of small model files for tests: raw GGUF bytes that can be wrong in any place (encoded
// here by hand from ggml's docs/gguf.md, not by the writer under test), complete little models, and
// safetensors.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/base/bytes.h"
#include "common/model/gguf.h"
#include "common/model/gguf_writer.h"
#include "kernels/quant/quant.h"

namespace updraft::testing {

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// CHECK that a Result failed and that its message has all these parts.
template <typename T>
void check_refused(const Result<T>& result, std::initializer_list<const char*> parts) {
  REQUIRE_FALSE(result.ok());
  for (const char* part : parts) {
    INFO(result.message());
    INFO(std::string(part));
    CHECK(contains(result.message(), part));
  }
}

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  REQUIRE(out.good());
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Appends little-endian fields one after another.
struct Bytes {
  std::string out;

  template <typename T>
  Bytes& put(T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& raw(std::string_view text) {
    out += text;
    return *this;
  }
  Bytes& u32(uint32_t v) { return put(v); }
  Bytes& u64(uint64_t v) { return put(v); }
  Bytes& text(std::string_view v) { return u64(v.size()).raw(v); }
  Bytes& zeros(size_t count) { return raw(std::string(count, '\0')); }
  Bytes& pad(size_t alignment) { return zeros((alignment - out.size() % alignment) % alignment); }

  // GGUF's header; key with its type, the value follows; a tensor record.
  Bytes& header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
    return raw("GGUF").u32(version).u64(tensors).u64(keys);
  }
  Bytes& key(std::string_view name, uint32_t type) { return text(name).u32(type); }
  Bytes& tensor(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type,
                uint64_t offset) {
    text(name).u32(static_cast<uint32_t>(ne.size()));
    for (const uint64_t n : ne) u64(n);
    return u32(type).u64(offset);
  }
};

// Pattern values that differ per tensor and place, exact in F16 and BF16.
inline float pattern(size_t tensor, size_t index) {
  return static_cast<float>(static_cast<int>((tensor * 37 + index * 5) % 127) - 63) / 64.0F;
}

struct NamedTensor {
  std::string name;
  std::vector<uint64_t> shape;  // outermost first
  std::vector<float> values;
  DType type = DType::kF32;  // as it is written

  std::vector<std::byte> encoded() const {
    std::vector<std::byte> out(
        static_cast<size_t>(row_bytes(type, static_cast<int64_t>(values.size()))));
    quantize_row(type, values, out.data());
    return out;
  }
};

inline NamedTensor patterned(std::string name, std::vector<uint64_t> shape, size_t salt) {
  size_t count = 1;
  for (const uint64_t n : shape) count *= n;
  NamedTensor out{std::move(name), std::move(shape), std::vector<float>(count), DType::kF32};
  for (size_t i = 0; i < count; ++i) out.values[i] = pattern(salt, i);
  return out;
}

// A complete small model in GGUF, f32: 2 layers, hidden 16, 4 heads, 2 kv heads, ff 12,
// vocabulary 10. Tests change keys, tensors and their formats before it is written.
struct SmallGguf {
  GgufWriter keys;
  std::vector<NamedTensor> tensors;

  explicit SmallGguf(const std::string& arch, uint32_t hidden = 16) {
    const uint64_t h = hidden;
    const auto key = [&](const char* suffix) { return arch + "." + suffix; };
    keys.set_text("general.architecture", arch);
    keys.set_u32(key("block_count"), 2);
    keys.set_u32(key("context_length"), 64);
    keys.set_u32(key("embedding_length"), hidden);
    keys.set_u32(key("feed_forward_length"), 12);
    keys.set_u32(key("attention.head_count"), 4);
    keys.set_u32(key("attention.head_count_kv"), 2);
    keys.set_f32(key("attention.layer_norm_rms_epsilon"), 1e-5F);
    add("token_embd.weight", {10, h});
    add("output_norm.weight", {h});
    add("output.weight", {10, h});
    const bool glm = arch == "glm4" || arch == "chatglm";
    for (int i = 0; i < 2; ++i) {
      const std::string p = "blk." + std::to_string(i) + ".";
      add(p + "attn_norm.weight", {h});
      add(p + "ffn_norm.weight", {h});
      add(p + "attn_output.weight", {h, h});
      add(p + "ffn_down.weight", {h, 12});
      if (arch == "chatglm") {
        add(p + "attn_qkv.weight", {2 * h, h});
        add(p + "attn_qkv.bias", {2 * h});
      } else {
        add(p + "attn_q.weight", {h, h});
        add(p + "attn_k.weight", {h / 2, h});
        add(p + "attn_v.weight", {h / 2, h});
      }
      if (arch == "qwen2" || arch == "glm4") {
        add(p + "attn_q.bias", {h});
        add(p + "attn_k.bias", {h / 2});
        add(p + "attn_v.bias", {h / 2});
      }
      if (arch == "qwen3") {
        add(p + "attn_q_norm.weight", {h / 4});
        add(p + "attn_k_norm.weight", {h / 4});
      }
      if (glm) {
        add(p + "ffn_up.weight", {24, h});
      } else {
        add(p + "ffn_gate.weight", {12, h});
        add(p + "ffn_up.weight", {12, h});
      }
      if (arch == "glm4") {
        add(p + "post_attention_norm.weight", {h});
        add(p + "post_ffw_norm.weight", {h});
      }
    }
    if (glm) keys.set_u32(key("rope.dimension_count"), 2);
  }

  void add(const std::string& name, std::vector<uint64_t> shape) {
    tensors.push_back(patterned(name, std::move(shape), tensors.size()));
  }
  void remove(const std::string& name) {
    std::erase_if(tensors, [&](const NamedTensor& t) { return t.name == name; });
  }
  void set_type(const std::string& name, DType type) {
    for (NamedTensor& tensor : tensors) {
      if (tensor.name == name) tensor.type = type;
    }
  }
  const NamedTensor& get(const std::string& name) const {
    for (const NamedTensor& tensor : tensors) {
      if (tensor.name == name) return tensor;
    }
    FAIL("no tensor ", name);
    return tensors.front();
  }

  void write(const std::string& path) {
    for (const NamedTensor& tensor : tensors) {
      const std::vector<uint64_t> ne(tensor.shape.rbegin(), tensor.shape.rend());
      keys.add_tensor(tensor.name, tensor.type, ne);
    }
    REQUIRE(keys.begin(path).ok());
    for (const NamedTensor& tensor : tensors) {
      REQUIRE(keys.write(tensor.encoded()).ok());
    }
    REQUIRE(keys.finish().ok());
  }
};

// safetensors bytes from a table in JSON and the data behind it.
inline std::string safetensors(const std::string& table, const std::string& data) {
  return Bytes().u64(table.size()).raw(table).raw(data).out;
}

// Tensors one after another, as the reference implementation writes them.
inline std::string safetensors(const std::vector<NamedTensor>& tensors) {
  std::string table = "{";
  std::string data;
  for (const NamedTensor& tensor : tensors) {
    const size_t begin = data.size();
    const std::vector<std::byte> bytes = tensor.encoded();
    data += as_text(bytes);
    std::string shape;
    for (const uint64_t n : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(n);
    table += (table.size() > 1 ? "," : "") + std::string("\"") + tensor.name + R"(":{"dtype":")" +
             dtype_info(tensor.type).name + R"(","shape":[)" + shape + R"(],"data_offsets":[)" +
             std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }
  return safetensors(table + "}", data);
}

}  // namespace updraft::testing
