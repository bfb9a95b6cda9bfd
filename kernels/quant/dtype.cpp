// The table of weight formats: names, GGUF ids and block sizes. Sizes from the GGUF specification's
// block structures.
#include "kernels/quant/dtype.h"

#include <array>

#include "common/base/check.h"

namespace updraft {
namespace {

// In the order of DType.
constexpr std::array<DTypeInfo, kDTypeCountAll> kTable = {{
    {"F32", 0, 1, 4},
    {"F16", 1, 1, 2},
    {"BF16", 30, 1, 2},
    {"Q8_0", 8, 32, 34},
    {"Q4_0", 2, 32, 18},
    {"Q4_1", 3, 32, 20},
    {"Q5_0", 6, 32, 22},
    {"Q5_1", 7, 32, 24},
    {"Q4_K", 12, 256, 144},
    {"Q5_K", 13, 256, 176},
    {"Q6_K", 14, 256, 210},
    {"F8_E4M3", UINT32_MAX, 1, 1},
    {"I8", UINT32_MAX, 1, 1},
}};

}  // namespace

const DTypeInfo& dtype_info(DType type) {
  const auto index = static_cast<size_t>(type);
  UPDRAFT_CHECK(index < kTable.size(), "a DType of the table");
  return kTable[index];
}

std::optional<DType> dtype_from_gguf(uint32_t gguf_type) {
  for (size_t i = 0; i < kDTypeCount; ++i) {
    if (kTable[i].gguf_type == gguf_type) return static_cast<DType>(i);
  }
  return std::nullopt;
}

int64_t row_bytes(DType type, int64_t cols) {
  const DTypeInfo& info = dtype_info(type);
  UPDRAFT_CHECK(cols >= 0 && cols % info.block_elems == 0, "a row holds whole blocks");
  return cols / info.block_elems * info.block_bytes;
}

}  // namespace updraft
