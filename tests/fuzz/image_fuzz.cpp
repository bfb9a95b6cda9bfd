// Arbitrary bytes as an image: what image_info() accepts is decoded and every pixel read, so that
// memory that was not written or lies outside is seen by the sanitizer.
#include <cstddef>
#include <cstdint>

#include "common/base/check.h"
#include "common/image/decode.h"

using namespace updraft;

namespace {

constexpr uint64_t kPixelsMax = 1 << 20;  // larger ones only take time

void decode(std::string_view mime, ByteView bytes) {
  const auto info = image_info(mime, bytes);
  if (!info || uint64_t{info->width} * info->height > kPixelsMax) return;
  const auto image = decode_rgb(mime, bytes);
  if (!image) return;
  UPDRAFT_CHECK(image->width == info->width && image->height == info->height);
  volatile uint64_t total = 0;
  for (size_t i = 0; i < image->bytes(); ++i) total = total + image->pixels[i];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const ByteView bytes(reinterpret_cast<const std::byte*>(data), size);
  decode("", bytes);
  decode("image/jpeg", bytes);
  decode(raw_rgb_type(static_cast<uint32_t>(size / 3), 1), bytes);
  // Types come from outside, too.
  const std::string_view text = as_text(bytes);
  (void)image_info(text.substr(0, text.find('\n')), bytes);
  return 0;
}
