// Fills a table of kernels for one vector type. Included by the file of each instruction set.
#pragma once

#include "kernels/cpu/attention_kernel.h"
#include "kernels/cpu/matmul_kernel.h"
#include "kernels/cpu/panel_kernel.h"
#include "kernels/cpu/row_kernel.h"

namespace updraft {

template <class V>
constexpr Kernels make_kernels() {
  Kernels k{};
  k.tile_rows = V::kLanes;
  k.matmul[static_cast<int>(DType::kF32)] = matmul<V, DType::kF32>;
  k.matmul[static_cast<int>(DType::kF16)] = matmul<V, DType::kF16>;
  k.matmul[static_cast<int>(DType::kBF16)] = matmul<V, DType::kBF16>;
  k.matmul[static_cast<int>(DType::kQ8_0)] = matmul<V, DType::kQ8_0>;
  k.matmul[static_cast<int>(DType::kQ4_0)] = matmul<V, DType::kQ4_0>;
  k.matmul[static_cast<int>(DType::kQ4_1)] = matmul<V, DType::kQ4_1>;
  k.matmul[static_cast<int>(DType::kQ5_0)] = matmul<V, DType::kQ5_0>;
  k.matmul[static_cast<int>(DType::kQ5_1)] = matmul<V, DType::kQ5_1>;
  k.matmul[static_cast<int>(DType::kQ4_K)] = matmul<V, DType::kQ4_K>;
  k.matmul[static_cast<int>(DType::kQ5_K)] = matmul<V, DType::kQ5_K>;
  k.matmul[static_cast<int>(DType::kQ6_K)] = matmul<V, DType::kQ6_K>;
  k.quantize = quantize_acts<V>;
  if constexpr (HasPanel<V>) {
    k.panel_tokens = V::kPanelTokens;
    k.quantize_panel = quantize_panel<V>;
    k.matmul_panel[static_cast<int>(DType::kQ8_0)] = matmul_panel<V, DType::kQ8_0>;
    k.matmul_panel[static_cast<int>(DType::kQ4_0)] = matmul_panel<V, DType::kQ4_0>;
    k.matmul_panel[static_cast<int>(DType::kQ4_1)] = matmul_panel<V, DType::kQ4_1>;
    k.matmul_panel[static_cast<int>(DType::kQ5_0)] = matmul_panel<V, DType::kQ5_0>;
    k.matmul_panel[static_cast<int>(DType::kQ5_1)] = matmul_panel<V, DType::kQ5_1>;
    k.matmul_panel[static_cast<int>(DType::kQ4_K)] = matmul_panel<V, DType::kQ4_K>;
    k.matmul_panel[static_cast<int>(DType::kQ5_K)] = matmul_panel<V, DType::kQ5_K>;
    k.matmul_panel[static_cast<int>(DType::kQ6_K)] = matmul_panel<V, DType::kQ6_K>;
  }
  k.residual_norm = residual_norm_row<V>;
  k.prepare_head = prepare_head_row<V>;
  k.store_kv = store_kv_row<V>;
  k.add_bias = add_bias_rows<V>;
  k.silu_mul = silu_mul_row<V>;
  k.attend_segment = attend_segment<V>;
  k.merge_segment = merge_segment<V>;
  k.finish_attention = finish_attention<V>;
  return k;
}

}  // namespace updraft
