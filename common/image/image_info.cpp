// See the header.
#include "common/image/image_info.h"

#include <array>
#include <charconv>
#include <cstring>
#include <optional>

namespace updraft {
namespace {

constexpr std::array<uint8_t, 8> kPngSignature = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
constexpr size_t kPngHeaderBytes = 33;       // signature, IHDR with length and checksum
constexpr int kJpegSegmentsMax = 4096;       // before the frame header; real files have a few dozen
constexpr size_t kJpegFrameHeaderBytes = 8;  // length, precision, height, width, components

uint32_t big_endian(const uint8_t* at, size_t bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value = value << 8 | at[i];
  return value;
}

// CRC-32 of PNG (annex D), bit by bit: it covers 17 bytes.
uint32_t crc32_of(const uint8_t* at, size_t bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= at[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xEDB88320 : 0);
  }
  return ~crc;
}

Result<ImageInfo> sized(ImageFormat format, const char* name, uint64_t width, uint64_t height) {
  const std::string size = std::to_string(width) + "x" + std::to_string(height) + " pixels";
  if (width == 0 || height == 0) return fail(std::string(name) + " of " + size);
  if (width > kImageSideMax || height > kImageSideMax || width * height > kImagePixelsMax) {
    return fail(std::string(name) + " of " + size + "; at most " + std::to_string(kImagePixelsMax) +
                " pixels and " + std::to_string(kImageSideMax) + " along a side are accepted");
  }
  return ImageInfo{format, static_cast<uint32_t>(width), static_cast<uint32_t>(height)};
}

bool is_png_colour(uint8_t depth, uint8_t colour) {
  switch (colour) {
    case 0:  // grey
      return depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
    case 3:  // palette
      return depth == 1 || depth == 2 || depth == 4 || depth == 8;
    case 2:  // RGB, grey + alpha, RGB + alpha
    case 4:
    case 6:
      return depth == 8 || depth == 16;
    default:
      return false;
  }
}

Result<ImageInfo> png_info(ByteView bytes) {
  std::array<uint8_t, kPngHeaderBytes> head{};
  if (bytes.size() < head.size()) {
    return fail("a PNG of " + std::to_string(bytes.size()) + " bytes ends before its header does");
  }
  std::memcpy(head.data(), bytes.data(), head.size());
  if (big_endian(&head[8], 4) != 13 || std::memcmp(&head[12], "IHDR", 4) != 0)
    return fail("a PNG that does not begin with its header (IHDR)");
  if (big_endian(&head[29], 4) != crc32_of(&head[12], 17))
    return fail("a PNG whose header does not match its checksum");
  if (!is_png_colour(head[24], head[25]) || head[26] != 0 || head[27] != 0 || head[28] > 1) {
    return fail("a PNG with bit depth " + std::to_string(head[24]) + ", colour type " +
                std::to_string(head[25]) + ", compression " + std::to_string(head[26]) +
                ", filter " + std::to_string(head[27]) + ", interlace " + std::to_string(head[28]) +
                ", which do not exist together");
  }
  return sized(ImageFormat::kPng, "a PNG", big_endian(&head[16], 4), big_endian(&head[20], 4));
}

// Start-of-frame markers; C4, C8 and CC in between mean other things.
bool is_frame(uint8_t marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}
// Sequential and progressive, Huffman or arithmetic.
bool is_readable_frame(uint8_t marker) {
  return marker <= 0xC2 || marker == 0xC9 || marker == 0xCA;
}

Result<ImageInfo> jpeg_frame(uint8_t marker, const uint8_t* header) {
  if (!is_readable_frame(marker)) {
    return fail("a lossless or hierarchical JPEG (frame marker " + std::to_string(marker) +
                "), which is not read");
  }
  if (header[2] != 8) {
    return fail("a JPEG with " + std::to_string(header[2]) + " bits per sample; 8 are read");
  }
  const uint8_t components = header[7];
  if (components != 1 && components != 3) {
    return fail("a JPEG with " + std::to_string(components) +
                " colour components; grey (1) and colour (3) are read");
  }
  return sized(ImageFormat::kJpeg, "a JPEG", big_endian(&header[5], 2), big_endian(&header[3], 2));
}

// Walks from segment to segment up to the frame header.
Result<ImageInfo> jpeg_info(ByteView bytes) {
  const auto cut = [&] {
    return fail("a JPEG of " + std::to_string(bytes.size()) +
                " bytes ends before its frame header");
  };
  size_t at = 2;  // after the start-of-image marker
  for (int segment = 0; segment < kJpegSegmentsMax; ++segment) {
    if (bytes.size() - at < 2) return cut();
    auto prefix = load_le<uint8_t>(&bytes[at]);
    auto marker = load_le<uint8_t>(&bytes[at + 1]);
    at += 2;
    if (prefix != 0xFF) return fail("a JPEG without a marker at byte " + std::to_string(at - 2));
    while (marker == 0xFF) {  // fill bytes
      if (bytes.size() - at < 1) return cut();
      marker = load_le<uint8_t>(&bytes[at++]);
    }
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) continue;  // stand alone
    if (marker == 0xD9 || marker == 0xDA)
      return fail("a JPEG without a frame header before its data");
    std::array<uint8_t, kJpegFrameHeaderBytes> header{};
    const bool frame = is_frame(marker);
    const size_t wanted = frame ? header.size() : 2;
    if (bytes.size() - at < wanted) return cut();
    std::memcpy(header.data(), &bytes[at], wanted);
    const size_t length = big_endian(header.data(), 2);
    if (length < wanted || length > bytes.size() - at) return cut();
    if (frame) return jpeg_frame(marker, header.data());
    at += length;
  }
  return fail("a JPEG with more than " + std::to_string(kJpegSegmentsMax) +
              " segments before its frame header");
}

// "width=W" without sign, spaces or leading zeros.
std::optional<uint32_t> read_field(std::string_view& rest, std::string_view name) {
  if (!rest.starts_with(name)) return std::nullopt;
  rest.remove_prefix(name.size());
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error != std::errc() || rest.front() == '0') return std::nullopt;
  rest.remove_prefix(static_cast<size_t>(end - rest.data()));
  return value;
}

Result<ImageInfo> raw_info(std::string_view mime, ByteView bytes) {
  std::string_view rest = mime.substr(kRawRgbType.size());
  const std::optional<uint32_t> width = read_field(rest, ";width=");
  const std::optional<uint32_t> height = width ? read_field(rest, ";height=") : std::nullopt;
  if (!height || !rest.empty()) {
    return fail("raw pixels of type \"" + printable(mime) + "\", which is not \"" +
                raw_rgb_type(1080, 2400) + "\" with the image's own size");
  }
  Result<ImageInfo> info = sized(ImageFormat::kRawRgb, "a raw image", *width, *height);
  if (!info) return info;
  const uint64_t wanted = uint64_t{*width} * *height * 3;
  if (bytes.size() != wanted) {
    return fail("a raw image of " + std::to_string(*width) + "x" + std::to_string(*height) +
                " pixels has " + std::to_string(bytes.size()) + " bytes instead of " +
                std::to_string(wanted));
  }
  return info;
}

}  // namespace

std::string raw_rgb_type(uint32_t width, uint32_t height) {
  return std::string(kRawRgbType) + ";width=" + std::to_string(width) +
         ";height=" + std::to_string(height);
}

Result<ImageInfo> image_info(std::string_view mime, ByteView bytes) {
  if (mime.starts_with(kRawRgbType)) return raw_info(mime, bytes);
  if (!mime.empty() && mime != "image/png" && mime != "image/jpeg")
    return fail("an image of type \"" + printable(mime) + "\"; image/png, image/jpeg and " +
                std::string(kRawRgbType) + " are read");
  std::array<uint8_t, kPngSignature.size()> head{};
  std::memcpy(head.data(), bytes.data(), std::min(head.size(), bytes.size()));
  const bool png = head == kPngSignature;
  const bool jpeg = head[0] == 0xFF && head[1] == 0xD8 && head[2] == 0xFF;
  if (!png && !jpeg) {
    return fail("neither PNG nor JPEG: it starts with '" +
                printable(std::string_view(reinterpret_cast<const char*>(head.data()),
                                           std::min(head.size(), bytes.size()))) +
                "'");
  }
  if (!mime.empty() && png != (mime == "image/png")) {
    return fail(std::string(png ? "a PNG" : "a JPEG") + " that is said to be " + std::string(mime));
  }
  return png ? png_info(bytes) : jpeg_info(bytes);
}

}  // namespace updraft
