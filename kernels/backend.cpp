// What a backend says that cannot do a thing at all.
#include "kernels/backend.h"

#include "common/base/check.h"

namespace updraft {

uint64_t Backend::kept_bytes(const WeightView& view, bool /*of_layer*/) const {
  return static_cast<uint64_t>(view.rows) * static_cast<uint64_t>(row_bytes(view.type, view.cols));
}

std::vector<DeviceNeeds> Backend::needs(const ModelBytes& model, const KvShape& shape,
                                        int64_t rows_max) const {
  DeviceNeeds out;
  out.name = description();
  const uint64_t used = memory_used_bytes();
  if (has_own_memory() && memory_total_bytes() > used) out.free_bytes = memory_total_bytes() - used;
  out.weight_bytes = model.whole + model.layers;
  out.page_bytes = kv_page_bytes(shape);
  out.scratch_bytes = scratch_bytes(shape, rows_max);
  return {out};
}

Result<void> Backend::make_swap_space(int32_t /*page_count*/) {
  return fail("swap space: the KV pages of this device (" + description() + ") are host memory");
}

std::span<const int32_t> Backend::read_tokens() {
  UPDRAFT_CHECK(false, "only a backend that samples has tokens to read");
  return {};
}

void Backend::swap_out(int32_t /*page*/, int32_t /*slot*/) {
  UPDRAFT_CHECK(false, "no swap space was made");
}

void Backend::swap_in(int32_t /*slot*/, int32_t /*page*/) {
  UPDRAFT_CHECK(false, "no swap space was made");
}

}  // namespace updraft
