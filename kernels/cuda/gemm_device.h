// What the products know of the device that they run on, and which way each shape takes when it has
// more tokens than the skinny product. One per device, owned by the thread that starts its work.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "common/base/result.h"
#include "kernels/cuda/weight_layout.h"
#include "kernels/cuda/wide_gemm_cublas.h"

namespace updraft::cuda {

// The ways of a product of more than kSkinnyTokensMax tokens.
enum class WideMethod : uint8_t {
  kTile,       // tile_gemm.h: packed weights in our own kernel; the same bits as the skinny product
  kCublas,     // a tile of the weights unpacked, then cuBLASLt
  kWarpgroup,  // warpgroup_gemm.h: packed weights in the kernel for capability 9.0
};

struct WideChoice {
  WideMethod method = WideMethod::kTile;
  CublasAlgorithm algorithm;  // with kCublas; empty: what its heuristic gives
  int32_t splits = 1;         // with kWarpgroup: blocks that share the columns; a power of two
};

struct GemmDeviceFacts {
  int32_t multiprocessor_count = 132;
  int32_t capability = 80;  // 10 * major + minor
  // What a tile of unpacked weights may take in a scratch; 128 rows of it are always allowed.
  int64_t unpacked_bytes_max = int64_t{128} << 20;
};

class GemmDevice {
 public:
  // `cublas`: what Cublas::open() gave for the same device; null: every product takes kTile.
  // Errors: facts of a device that the kernels do not run on.
  static Result<std::unique_ptr<GemmDevice>> open(const GemmDeviceFacts& facts,
                                                  std::unique_ptr<Cublas> cublas);

  const GemmDeviceFacts& facts() const { return facts_; }
  Cublas* cublas() const { return cublas_.get(); }  // null: there is none

  // True: products may take kWarpgroup. For a device of capability 9.0 whose kernel was seen to be
  // right (warpgroup_check.h); in tests for the emulator. Scratches are as large either way.
  void set_warpgroup(bool on) { warpgroup_ = on; }
  bool warpgroup() const { return warpgroup_; }

  // True: every product takes kTile, so that a row's bits do not depend on how many rows run beside
  // it.
  void set_batch_invariant(bool on) { batch_invariant_ = on; }

  // What a product of this matrix with `tokens` takes: what was set for the next power of two, as
  // far as it is there; else kCublas where there is one.
  WideChoice choice(const PackedLayout& layout, int32_t tokens) const;
  void set_choice(const PackedLayout& layout, int32_t tokens, const WideChoice& choice);

  // cuBLASLt does not multiply this shape here: it takes kTile from now on. The first of the
  // reasons is kept.
  void refuse_cublas(const PackedLayout& layout, int32_t tokens, const std::string& why);
  // "": nothing was refused.
  const std::string& refusal() const { return refusal_; }

  // The shape and the power of two that stand for all its products: "<format> <rows> <cols>
  // <tokens>", as a line of choices_text() begins.
  static std::string choice_key(const PackedLayout& layout, int32_t tokens);

  // All set choices as text, one a line, to be kept on disk beside the device's name and driver,
  // and back. Errors: a line that is none, with its number; nothing is taken then.
  std::string choices_text() const;
  Result<void> set_choices_text(std::string_view text);

 private:
  GemmDevice() = default;
  bool has(WideMethod method, DType type) const;
  GemmDeviceFacts facts_;
  std::unique_ptr<Cublas> cublas_;
  bool warpgroup_ = false;
  bool batch_invariant_ = false;
  std::string refusal_;
  std::map<std::string, WideChoice> choices_;  // by "<format> <rows> <cols> <tokens>"
};

}  // namespace updraft::cuda
