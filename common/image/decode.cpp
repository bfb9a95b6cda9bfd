// See the header.
#include "common/image/decode.h"

#include <cstring>

#include "common/image/decoders.h"

namespace updraft {

RgbImage image::blank_image(const ImageInfo& size) {
  RgbImage out;
  out.width = size.width;
  out.height = size.height;
  out.pixels = std::make_unique_for_overwrite<uint8_t[]>(out.bytes());
  return out;
}

Result<RgbImage> decode_rgb(std::string_view mime, ByteView bytes) {
  const Result<ImageInfo> info = image_info(mime, bytes);
  if (!info) return info.error();
  switch (info->format) {
    case ImageFormat::kPng:
      return image::decode_png(bytes);
    case ImageFormat::kJpeg:
      return image::decode_jpeg(bytes);
    case ImageFormat::kRawRgb:
      break;
  }
  RgbImage out = image::blank_image(*info);
  std::memcpy(out.pixels.get(), bytes.data(), out.bytes());
  return out;
}

}  // namespace updraft
