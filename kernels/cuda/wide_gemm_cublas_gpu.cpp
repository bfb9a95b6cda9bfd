// cuBLASLt through dlopen. A plan (descriptors and an algorithm that fits) is made once per shape
// and kept: the heuristic takes tens of microseconds.
#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "kernels/cuda/wide_gemm_cublas.h"

namespace updraft::cuda {
namespace {

constexpr size_t kPlansMax = 4096;

// The functions that we use, under the library's names.
struct Library {
  decltype(&::cublasLtCreate) create;
  decltype(&::cublasLtDestroy) destroy;
  decltype(&::cublasLtMatmul) matmul;
  decltype(&::cublasLtMatmulDescCreate) desc_create;
  decltype(&::cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&::cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&::cublasLtMatrixLayoutCreate) layout_create;
  decltype(&::cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&::cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&::cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&::cublasLtMatmulAlgoCheck) check;
  decltype(&::cublasLtGetVersion) version;
  decltype(&::cublasLtGetStatusString) status_string;

  std::string explain(const std::string& what, cublasStatus_t status) const {
    return "cublasLt: " + what + ": " + status_string(status) + " (" + std::to_string(status) + ")";
  }
};

template <typename Function>
bool find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

// The library stays open for the rest of the process: its own threads and contexts outlive handles.
Result<Library> load(void* library) {
  Library out{};
  const bool all = find(library, "cublasLtCreate", &out.create) &&
                   find(library, "cublasLtDestroy", &out.destroy) &&
                   find(library, "cublasLtMatmul", &out.matmul) &&
                   find(library, "cublasLtMatmulDescCreate", &out.desc_create) &&
                   find(library, "cublasLtMatmulDescDestroy", &out.desc_destroy) &&
                   find(library, "cublasLtMatmulDescSetAttribute", &out.desc_set) &&
                   find(library, "cublasLtMatrixLayoutCreate", &out.layout_create) &&
                   find(library, "cublasLtMatrixLayoutDestroy", &out.layout_destroy) &&
                   find(library, "cublasLtMatmulPreferenceCreate", &out.preference_create) &&
                   find(library, "cublasLtMatmulPreferenceDestroy", &out.preference_destroy) &&
                   find(library, "cublasLtMatmulPreferenceSetAttribute", &out.preference_set) &&
                   find(library, "cublasLtMatmulAlgoGetHeuristic", &out.heuristic) &&
                   find(library, "cublasLtMatmulAlgoCheck", &out.check) &&
                   find(library, "cublasLtGetVersion", &out.version) &&
                   find(library, "cublasLtGetStatusString", &out.status_string);
  if (!all) return fail(std::string("cublasLt: a function is missing: ") + dlerror());
  return out;
}

std::string shape_text(const CublasProduct& op) {
  return std::to_string(op.rows) + " x " + std::to_string(op.cols) + " with " +
         std::to_string(op.tokens) + " tokens";
}

cublasLtMatmulAlgo_t to_library(const CublasAlgorithm& algorithm) {
  cublasLtMatmulAlgo_t out{};
  static_assert(sizeof out.data == sizeof algorithm.words);
  std::copy(algorithm.words.begin(), algorithm.words.end(), out.data);
  return out;
}
CublasAlgorithm from_library(const cublasLtMatmulAlgo_t& algorithm) {
  CublasAlgorithm out;
  std::copy(std::begin(algorithm.data), std::end(algorithm.data), out.words.begin());
  return out;
}

// Of the weight, x and y, in bytes, as far as the library can make use of it. It takes 256 where
// nothing is said, and what it then finds fails where an operand lies otherwise.
using Alignments = std::array<uint32_t, 3>;
uint32_t alignment_of(const void* at) {
  constexpr uintptr_t kMost = 256;
  const uintptr_t address = reinterpret_cast<uintptr_t>(at) | kMost;
  return static_cast<uint32_t>(address & (~address + 1));
}
Alignments alignments_of(const CublasProduct& op) {
  return {alignment_of(op.weight), alignment_of(op.x), alignment_of(op.y)};
}

// In the library's columns-first terms: D [rows, tokens] = A' * B, A the weight's rows as columns.
struct Plan {
  const Library* library = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t a = nullptr;
  cublasLtMatrixLayout_t b = nullptr;
  cublasLtMatrixLayout_t d = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool by_heuristic = false;  // its algorithm, for these alignments

  explicit Plan(const Library* of) : library(of) {}
  Plan(Plan&& other) noexcept
      : library(other.library),
        desc(std::exchange(other.desc, nullptr)),
        a(std::exchange(other.a, nullptr)),
        b(std::exchange(other.b, nullptr)),
        d(std::exchange(other.d, nullptr)),
        algorithm(other.algorithm),
        by_heuristic(other.by_heuristic) {}
  Plan& operator=(Plan&&) = delete;
  ~Plan() {
    if (desc != nullptr) library->desc_destroy(desc);
    for (cublasLtMatrixLayout_t layout : {a, b, d}) {
      if (layout != nullptr) library->layout_destroy(layout);
    }
  }
};

class LoadedCublas final : public Cublas {
 public:
  LoadedCublas(const Library& library, cublasLtHandle_t handle)
      : library_(library), handle_(handle) {}
  ~LoadedCublas() override {
    plans_.clear();
    library_.destroy(handle_);
  }

  std::string version() const override { return std::to_string(library_.version()); }
  Result<void> run(const CublasProduct& op, const CublasAlgorithm& algorithm,
                   Stream stream) override {
    const Key key{op.kind,     op.wide_output, op.rows,           op.cols,        op.tokens,
                  op.x_stride, op.y_stride,    alignments_of(op), algorithm.words};
    auto found = plans_.find(key);
    if (found == plans_.end()) {
      Result<Plan> plan = make_plan(op, algorithm);
      if (!plan) return plan.error();
      if (plans_.size() >= kPlansMax) plans_.clear();
      found = plans_.emplace(key, std::move(*plan)).first;
    }
    Plan& plan = found->second;
    cublasStatus_t status = multiply(plan, op, stream);
    if (status != CUBLAS_STATUS_SUCCESS && !plan.by_heuristic) {
      // A check does not see everything, says the library's documentation.
      const Result<void> other = choose(op, plan);
      if (!other) return other;
      status = multiply(plan, op, stream);
    }
    if (status == CUBLAS_STATUS_SUCCESS) return {};
    plans_.erase(found);
    return fail(library_.explain("a product of " + shape_text(op), status));
  }

  Result<std::vector<CublasAlgorithm>> candidates(const CublasProduct& op, int count) override {
    Result<Plan> plan = describe(op);
    if (!plan) return plan.error();
    Result<std::vector<cublasLtMatmulHeuristicResult_t>> found = heuristic(op, *plan, count);
    if (!found) return found.error();
    std::vector<CublasAlgorithm> out;
    for (const cublasLtMatmulHeuristicResult_t& one : *found) out.push_back(from_library(one.algo));
    return out;
  }

 private:
  using Key = std::tuple<CublasKind, bool, int32_t, int32_t, int32_t, int64_t, int64_t, Alignments,
                         std::array<uint64_t, 8>>;

  cublasStatus_t multiply(const Plan& plan, const CublasProduct& op, Stream stream) const {
    if (op.kind == CublasKind::kFloat8) {
      if (const cublasStatus_t set = set_scales(plan, op); set != CUBLAS_STATUS_SUCCESS) return set;
    }
    const float one = 1.0F;
    const float beta = op.accumulate ? 1.0F : 0.0F;
    const int32_t one_int = 1;
    const int32_t zero_int = 0;
    const bool whole = op.kind == CublasKind::kInt8;
    return library_.matmul(handle_, plan.desc, whole ? static_cast<const void*>(&one_int) : &one,
                           op.weight, plan.a, op.x, plan.b,
                           whole ? static_cast<const void*>(&zero_int) : &beta, op.y, plan.d, op.y,
                           plan.d, &plan.algorithm, op.workspace, kCublasWorkspaceBytes, stream);
  }

  Result<Plan> describe(const CublasProduct& op) const {
    const bool whole = op.kind == CublasKind::kInt8;
    const cudaDataType_t in = whole                            ? CUDA_R_8I
                              : op.kind == CublasKind::kFloat8 ? CUDA_R_8F_E4M3
                                                               : CUDA_R_16BF;
    const cudaDataType_t out = whole ? CUDA_R_32I : op.wide_output ? CUDA_R_32F : CUDA_R_16BF;
    Plan plan(&library_);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t status =
        library_.desc_create(&plan.desc, whole ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
                             whole ? CUDA_R_32I : CUDA_R_32F);
    const auto then = [&](cublasStatus_t next) {
      if (status == CUBLAS_STATUS_SUCCESS) status = next;
    };
    if (status == CUBLAS_STATUS_SUCCESS) {
      then(library_.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                             sizeof transposed));
      if (op.kind == CublasKind::kFloat8) {
        const auto per_row = static_cast<int32_t>(CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
        then(library_.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &per_row,
                               sizeof per_row));
        then(library_.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &per_row,
                               sizeof per_row));
        // Whether there are scales is part of what the heuristic looks at.
        then(set_scales(plan, op));
      }
      const auto cols = static_cast<uint64_t>(op.cols);
      const auto rows = static_cast<uint64_t>(op.rows);
      const auto tokens = static_cast<uint64_t>(op.tokens);
      then(library_.layout_create(&plan.a, in, cols, rows, op.cols));
      then(library_.layout_create(&plan.b, in, cols, tokens, op.x_stride));
      then(library_.layout_create(&plan.d, out, rows, tokens, op.y_stride));
    }
    if (status != CUBLAS_STATUS_SUCCESS) {
      return fail(library_.explain("describing a product of " + shape_text(op), status));
    }
    return plan;
  }

  Result<std::vector<cublasLtMatmulHeuristicResult_t>> heuristic(const CublasProduct& op,
                                                                 const Plan& plan,
                                                                 int count) const {
    cublasLtMatmulPreference_t preference = nullptr;
    cublasStatus_t status = library_.preference_create(&preference);
    std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<size_t>(count));
    int got = 0;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto& value) {
      if (status == CUBLAS_STATUS_SUCCESS)
        status = library_.preference_set(preference, what, &value, sizeof value);
    };
    const Alignments alignments = alignments_of(op);
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kCublasWorkspaceBytes);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments[0]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments[1]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments[2]);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments[2]);
    // Sums of parts are added up as they are, not rounded to bfloat16 on the way.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = library_.heuristic(handle_, plan.desc, plan.a, plan.b, plan.d, plan.d, preference,
                                  count, found.data(), &got);
    }
    if (preference != nullptr) library_.preference_destroy(preference);
    found.resize(status == CUBLAS_STATUS_SUCCESS ? static_cast<size_t>(got) : 0);
    std::erase_if(found, [](const auto& one) { return one.state != CUBLAS_STATUS_SUCCESS; });
    if (found.empty()) {
      return fail(library_.explain("no algorithm for a product of " + shape_text(op), status));
    }
    return found;
  }

  // Into the plan, what the heuristic finds first.
  Result<void> choose(const CublasProduct& op, Plan& plan) const {
    Result<std::vector<cublasLtMatmulHeuristicResult_t>> found = heuristic(op, plan, 1);
    if (!found) return found.error();
    plan.algorithm = found->front().algo;
    plan.by_heuristic = true;
    return {};
  }

  Result<Plan> make_plan(const CublasProduct& op, const CublasAlgorithm& wanted) const {
    Result<Plan> plan = describe(op);
    if (!plan) return plan;
    if (!wanted.empty()) {
      plan->algorithm = to_library(wanted);
      cublasLtMatmulHeuristicResult_t result{};
      const cublasStatus_t fits = library_.check(handle_, plan->desc, plan->a, plan->b, plan->d,
                                                 plan->d, &plan->algorithm, &result);
      if (fits == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kCublasWorkspaceBytes) {
        return plan;
      }
    }
    if (Result<void> chosen = choose(op, *plan); !chosen) return chosen.error();
    return plan;
  }

  cublasStatus_t set_scales(const Plan& plan, const CublasProduct& op) const {
    const void* rows = op.row_scales;
    const void* tokens = op.token_scales;
    const cublasStatus_t first = library_.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                                                   static_cast<const void*>(&rows), sizeof rows);
    if (first != CUBLAS_STATUS_SUCCESS) return first;
    return library_.desc_set(plan.desc, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
                             static_cast<const void*>(&tokens), sizeof tokens);
  }

  Library library_;
  cublasLtHandle_t handle_;
  std::map<Key, Plan> plans_;
};

}  // namespace

Result<std::unique_ptr<Cublas>> Cublas::open() {
  void* opened = nullptr;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so"}) {
    if (opened == nullptr) opened = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (opened == nullptr) return std::unique_ptr<Cublas>();
  Result<Library> library = load(opened);
  if (!library) return library.error();
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = library->create(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return fail(library->explain("no handle", status));
  }
  return std::unique_ptr<Cublas>(std::make_unique<LoadedCublas>(*library, handle));
}

}  // namespace updraft::cuda
