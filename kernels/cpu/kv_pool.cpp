// Checks and takes the KV pool.
#include "kernels/cpu/kv_pool.h"

#include <cstring>
#include <string>

#include "common/base/bytes.h"

namespace updraft {
namespace {

Result<void> check_shape(const KvShape& shape) {
  const auto range = [](const char* name, int64_t value, int64_t low,
                        int64_t high) -> Result<void> {
    if (value >= low && value <= high) return {};
    return fail("KV pages: " + std::string(name) + " is " + std::to_string(value) + ", must be " +
                std::to_string(low) + ".." + std::to_string(high));
  };
  if (auto r = range("layer_count", shape.layer_count, 1, 65536); !r) return r;
  if (auto r = range("kv_head_count", shape.kv_head_count, 1, 65536); !r) return r;
  if (auto r = range("head_dim", shape.head_dim, 1, 4096); !r) return r;
  if (auto r = range("page_tokens", shape.page_tokens, 16, 256); !r) return r;
  if (auto r = range("page_count", shape.page_count, 1, INT32_MAX); !r) return r;
  switch (shape.type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0:
      return {};
    default:
      return fail("KV pages: type " + std::string(dtype_info(shape.type).name) +
                  ", must be F32, F16, BF16 or Q8_0");
  }
}

// What is taken from the system at once: a huge page, where there are such.
constexpr int64_t kTakenUnit = 2 << 20;

KvLayout layout_of(const KvShape& shape) {
  return KvLayout::of(shape.type, shape.head_dim, shape.page_tokens,
                      static_cast<int64_t>(shape.layer_count) * shape.kv_head_count);
}

}  // namespace

uint64_t KvPool::page_bytes(const KvShape& shape) {
  return static_cast<uint64_t>(layout_of(shape).page_stride);
}

Result<KvPool> KvPool::make(const KvShape& shape, MemoryBudget& budget) {
  if (Result<void> checked = check_shape(shape); !checked) return checked.error();
  KvPool pool;
  pool.shape_ = shape;
  pool.layout_ = layout_of(shape);
  const auto bytes = checked_mul(page_bytes(shape), static_cast<uint64_t>(shape.page_count));
  if (!bytes || *bytes > INT64_MAX / 2) return fail("KV pages: more bytes than 64 bits count");
  Result<HugeBuffer> memory =
      HugeBuffer::allocate(budget, *bytes, std::to_string(shape.page_count) + " KV pages");
  if (!memory) return memory.error();
  pool.memory_ = std::move(*memory);
  const auto units = (*bytes + kTakenUnit - 1) / kTakenUnit;
  pool.unit_taken_.assign(units, false);
  pool.new_units_.reserve(units);
  return pool;
}

void KvPool::take_memory(std::span<const int32_t> pages, ThreadPool& pool) {
  new_units_.clear();
  int32_t last_page = -1;
  for (const int32_t page : pages) {
    if (page == last_page) continue;
    last_page = page;
    const int64_t first_byte = page * layout_.page_stride;
    const int64_t last_unit = (first_byte + layout_.page_stride - 1) / kTakenUnit;
    for (int64_t unit = first_byte / kTakenUnit; unit <= last_unit; ++unit) {
      if (unit_taken_[static_cast<size_t>(unit)]) continue;
      unit_taken_[static_cast<size_t>(unit)] = true;
      new_units_.push_back(unit);
    }
  }
  if (new_units_.empty()) return;
  pool.for_each(static_cast<int64_t>(new_units_.size()), [&](int64_t item, int) {
    memory_.take(new_units_[static_cast<size_t>(item)] * kTakenUnit, kTakenUnit);
  });
}

void KvPool::copy_page(int32_t from, int32_t to) {
  UPDRAFT_CHECK(from >= 0 && from < shape_.page_count && to >= 0 && to < shape_.page_count,
                "a page of the pool");
  if (from == to) return;
  std::byte* all = memory_.data();
  std::memcpy(all + to * layout_.page_stride, all + from * layout_.page_stride,
              static_cast<size_t>(layout_.page_stride));
}

}  // namespace updraft
