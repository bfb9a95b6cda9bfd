// What an image is, from its first bytes: format and size, judged before anything is decoded or
// allocated. Pure, no library; each byte that decides is read once, so that memory which another
// process rewrites meanwhile can give a wrong answer but never two different ones.
//
// Formats: PNG (PNG specification, third edition, sections 5.2 and 11.2.1), JPEG (ITU-T T.81 annex
// B), and raw pixels, whose type names their size: "image/x-raw-rgb;width=1080;height=2400" is
// height rows of width pixels of three bytes R, G, B without padding.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace updraft {

inline constexpr uint32_t kImageSideMax = 65535;                 // pixels
inline constexpr uint64_t kImagePixelsMax = uint64_t{64} << 20;  // 192 MiB once decoded
inline constexpr std::string_view kRawRgbType = "image/x-raw-rgb";

enum class ImageFormat : uint8_t { kPng, kJpeg, kRawRgb };

struct ImageInfo {
  ImageFormat format = ImageFormat::kPng;
  uint32_t width = 0;   // pixels, 1..kImageSideMax
  uint32_t height = 0;  // width * height <= kImagePixelsMax
  bool operator==(const ImageInfo&) const = default;
};

// mime: "image/png", "image/jpeg", a raw type as above, or empty (PNG or JPEG, by the bytes).
// Errors: neither format, another one than mime says, a broken or too short header, a kind of JPEG
// that the decoder does not read (CMYK, lossless, 12 bits), a size of 0 or above the limits, raw
// bytes that are not exactly width * height * 3.
Result<ImageInfo> image_info(std::string_view mime, ByteView bytes);

// The type of raw pixels of this size.
std::string raw_rgb_type(uint32_t width, uint32_t height);

}  // namespace updraft
