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

}  // namespace

uint64_t KvPool::page_bytes(const KvShape& shape) {
  const KvLayout layout = KvLayout::of(shape.type, shape.head_dim, shape.page_tokens);
  return static_cast<uint64_t>(layout.page_bytes) * static_cast<uint64_t>(shape.kv_head_count) *
         static_cast<uint64_t>(shape.layer_count);
}

Result<KvPool> KvPool::make(const KvShape& shape, MemoryBudget& budget) {
  if (Result<void> checked = check_shape(shape); !checked) return checked.error();
  KvPool pool;
  pool.shape_ = shape;
  pool.layout_ = KvLayout::of(shape.type, shape.head_dim, shape.page_tokens);
  const auto bytes = checked_mul(page_bytes(shape), static_cast<uint64_t>(shape.page_count));
  if (!bytes || *bytes > INT64_MAX / 2) return fail("KV pages: more bytes than 64 bits count");
  Result<HugeBuffer> memory =
      HugeBuffer::allocate(budget, *bytes, std::to_string(shape.page_count) + " KV pages");
  if (!memory) return memory.error();
  pool.memory_ = std::move(*memory);
  return pool;
}

void KvPool::copy_page(int32_t from, int32_t to) {
  UPDRAFT_CHECK(from >= 0 && from < shape_.page_count && to >= 0 && to < shape_.page_count,
                "a page of the pool");
  if (from == to) return;
  const int64_t bytes = layout_.page_bytes;
  for (int layer = 0; layer < shape_.layer_count; ++layer) {
    for (int head = 0; head < shape_.kv_head_count; ++head) {
      std::byte* all = pages(layer, head);
      std::memcpy(all + to * bytes, all + from * bytes, static_cast<size_t>(bytes));
    }
  }
}

}  // namespace updraft
