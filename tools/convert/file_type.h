// The kinds of quantised GGUF file ("q4_0", "q4_k_m") and which format each tensor of such a file
// has. A kind is a mix: most matrices have its base format, the ones that cost the most quality get
// more bits, and a format whose blocks do not divide a row gives way to one whose blocks do. The
// rules are those of llama.cpp's quantiser, because users expect a "Q4_K_M" to have that size and
// that quality.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kernels/quant/dtype.h"

namespace updraft {

enum class FileType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K_S,
  kQ4_K_M,
  kQ5_K_S,
  kQ5_K_M,
  kQ6_K,
};

// "q4_k_m"; in any case, "-" for "_" is not taken. Nothing when it is none.
std::optional<FileType> file_type_from_name(std::string_view name);
const char* file_type_name(FileType type);
// "f32, f16, ...", for messages.
std::string file_type_names();
// The number in general.file_type.
uint32_t file_type_gguf_number(FileType type);
// The format that most matrices have.
DType base_type(FileType type);

// What of the model decides about the mix.
struct MixContext {
  int32_t layer_count = 0;
  bool tied_embeddings = false;  // no output.weight in the file: token_embd.weight is the head too
  bool is_llama_70b = false;     // llama with 80 layers and grouped queries: v has few rows there
};

// Whether a quantiser touches this tensor at all; norms, biases and tables stay as they are.
// ne: fastest first, as in the file.
bool is_quantisable(std::string_view name, std::span<const uint64_t> ne);

// The format of a tensor that is_quantisable(). Layers are read from the name ("blk.3.").
DType tensor_type(FileType type, std::string_view name, uint64_t cols, const MixContext& context);

}  // namespace updraft
