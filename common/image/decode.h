// An image's pixels. libpng and libjpeg-turbo do the decoding; this is the one place that names
// them.
//
// The bytes may lie in memory that another process rewrites meanwhile: they are read front to back
// through a small private window, each once, and the sizes that matter are the decoder's own. Such
// a process gets wrong pixels or an error, nothing more.
//
// Pixels come as they are stored: no rotation by EXIF, no colour profile, no gamma; alpha is
// dropped; 16 bits become 8; grey and palettes become RGB. This is what PIL's convert("RGB") gives,
// which the vision models' own preprocessors start from.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/image/image_info.h"

namespace updraft {

struct RgbImage {
  uint32_t width = 0;
  uint32_t height = 0;
  std::unique_ptr<uint8_t[]> pixels;  // [height, width, 3]

  size_t bytes() const { return size_t{width} * height * 3; }
  const uint8_t* row(uint32_t y) const { return pixels.get() + size_t{y} * width * 3; }
};

// Whatever image_info() accepts. Memory: the pixels, and while it runs for a progressive JPEG twice
// as much again; at most kImagePixelsMax pixels. Errors: those of image_info(), and damage in the
// data, told with the library's own words; a file that ends early is an error.
Result<RgbImage> decode_rgb(std::string_view mime, ByteView bytes);

}  // namespace updraft
