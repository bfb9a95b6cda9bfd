// What a backend says that cannot do a thing at all.
#include "kernels/backend.h"

#include "common/base/check.h"

namespace updraft {

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
