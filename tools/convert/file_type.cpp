// The mixes, by tensor name. Source of the rules: llama.cpp's quantiser (the published behaviour
// of its Q4_K_M and its neighbours); sizes of files made so are checked in the tests.
#include "tools/convert/file_type.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "common/base/check.h"

namespace updraft {
namespace {

struct Row {
  const char* name;
  uint32_t gguf_number;
  DType base;
};

// In the order of FileType. Numbers: general.file_type in the GGUF specification.
constexpr std::array<Row, 13> kTable = {{
    {"f32", 0, DType::kF32},
    {"f16", 1, DType::kF16},
    {"bf16", 32, DType::kBF16},
    {"q8_0", 7, DType::kQ8_0},
    {"q4_0", 2, DType::kQ4_0},
    {"q4_1", 3, DType::kQ4_1},
    {"q5_0", 8, DType::kQ5_0},
    {"q5_1", 9, DType::kQ5_1},
    {"q4_k_s", 14, DType::kQ4_K},
    {"q4_k_m", 15, DType::kQ4_K},
    {"q5_k_s", 16, DType::kQ5_K},
    {"q5_k_m", 17, DType::kQ5_K},
    {"q6_k", 18, DType::kQ6_K},
}};

const Row& row_of(FileType type) {
  const auto index = static_cast<size_t>(type);
  UPDRAFT_CHECK(index < kTable.size(), "a FileType of the table");
  return kTable[index];
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// 3 of "blk.3.attn_q.weight"; -1 of a tensor outside the layers.
int layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return -1;
  int layer = -1;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
  return layer;
}

// The layers that the medium mixes give more bits: the first and the last eighth, and every third
// between.
bool has_more_bits(int layer, int layer_count) {
  const int eighth = layer_count / 8;
  return layer < eighth || layer >= 7 * layer_count / 8 || (layer - eighth) % 3 == 2;
}

bool is_medium(FileType type) { return type == FileType::kQ4_K_M || type == FileType::kQ5_K_M; }

DType type_of_value(FileType type, int layer, const MixContext& context) {
  DType chosen = base_type(type);
  if (is_medium(type) && has_more_bits(layer, context.layer_count)) chosen = DType::kQ6_K;
  if (type == FileType::kQ4_K_S && layer < 4) chosen = DType::kQ5_K;
  if (context.is_llama_70b && chosen == DType::kQ4_K) chosen = DType::kQ5_K;
  return chosen;
}

DType type_of_down(FileType type, int layer, const MixContext& context) {
  if (is_medium(type) && has_more_bits(layer, context.layer_count)) return DType::kQ6_K;
  if (type == FileType::kQ4_K_S && layer < context.layer_count / 8) return DType::kQ5_K;
  return base_type(type);
}

// The head decides every token, so it has at least 6 bits.
DType type_of_head(FileType type, uint64_t cols) {
  const DType base = base_type(type);
  const auto block = static_cast<uint64_t>(dtype_info(base).block_elems);
  return base == DType::kQ8_0 || cols % block != 0 ? DType::kQ8_0 : DType::kQ6_K;
}

// A format whose blocks divide the row, near in size.
DType fitting(DType type, uint64_t cols) {
  const auto fits = [&](DType t) {
    return cols % static_cast<uint64_t>(dtype_info(t).block_elems) == 0;
  };
  if (fits(type)) return type;
  DType other = type;
  if (type == DType::kQ4_K) other = DType::kQ5_0;
  if (type == DType::kQ5_K) other = DType::kQ5_1;
  if (type == DType::kQ6_K) other = DType::kQ8_0;
  return fits(other) ? other : DType::kF16;
}

}  // namespace

std::optional<FileType> file_type_from_name(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (size_t i = 0; i < kTable.size(); ++i) {
    if (lower == kTable[i].name) return static_cast<FileType>(i);
  }
  return std::nullopt;
}

const char* file_type_name(FileType type) { return row_of(type).name; }

std::string file_type_names() {
  std::string names;
  for (const Row& row : kTable) names += (names.empty() ? "" : ", ") + std::string(row.name);
  return names;
}

uint32_t file_type_gguf_number(FileType type) { return row_of(type).gguf_number; }

DType base_type(FileType type) { return row_of(type).base; }

bool is_quantisable(std::string_view name, std::span<const uint64_t> ne) {
  const bool is_vector =
      ne.empty() || std::all_of(ne.begin() + 1, ne.end(), [](uint64_t n) { return n == 1; });
  return !is_vector && name.ends_with("weight") && !contains(name, "_norm.weight") &&
         !contains(name, "ffn_gate_inp.weight");
}

DType tensor_type(FileType type, std::string_view name, uint64_t cols, const MixContext& context) {
  const DType base = base_type(type);
  if (dtype_info(base).block_elems == 1) return base;
  DType chosen = base;
  if (name == "output.weight" || (context.tied_embeddings && name == "token_embd.weight")) {
    chosen = type_of_head(type, cols);
  } else if (contains(name, "attn_qkv.weight") || contains(name, "attn_v.weight")) {
    chosen = type_of_value(type, layer_of(name), context);
  } else if (contains(name, "ffn_down")) {
    chosen = type_of_down(type, layer_of(name), context);
  }
  return fitting(chosen, cols);
}

}  // namespace updraft
