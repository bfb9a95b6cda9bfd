// PNG through libpng. Its errors jump; so nothing with a destructor lives in a frame that a jump
// could leave, and what must be freed belongs to PngReader, outside.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <vector>

#include "common/image/decoders.h"

namespace updraft::image {
namespace {

constexpr png_alloc_size_t kChunkBytesMax = 1 << 20;  // of a palette or the like

struct PngReader {
  explicit PngReader(ByteView input) : rest(input) {}
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }

  ByteView rest;  // not yet read
  char why[160] = "out of memory";
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::vector<png_bytep> rows;
  RgbImage out;
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* reader = static_cast<PngReader*>(png_get_error_ptr(png));
  std::snprintf(reader->why, sizeof reader->why, "%s", message);
  png_longjmp(png, 1);
}
void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep to, size_t bytes) {
  auto* reader = static_cast<PngReader*>(png_get_io_ptr(png));
  if (bytes > reader->rest.size()) png_error(png, "the file ends early");
  std::memcpy(to, reader->rest.data(), bytes);
  reader->rest = reader->rest.subspan(bytes);
}

// Chunks that say nothing about the pixels are skipped unread: texts and profiles are compressed
// and could grow.
void ignore_chunks(png_structp png) {
  static constexpr png_byte kIgnored[] =
      "bKGD\0cHRM\0eXIf\0gAMA\0hIST\0iCCP\0iTXt\0oFFs\0pCAL\0pHYs\0sBIT\0sCAL\0sPLT\0sRGB\0tEXt\0"
      "tIME\0zTXt";
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, nullptr, 0);
  png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, kIgnored, sizeof kIgnored / 5);
}

// The header as the library read it, and what it makes of the pixels: RGB, 8 bits.
bool read_header(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_set_read_fn(reader.png, &reader, read_bytes);
  png_set_user_limits(reader.png, kImageSideMax, kImageSideMax);
  png_set_chunk_malloc_max(reader.png, kChunkBytesMax);
  ignore_chunks(reader.png);
  png_read_info(reader.png, reader.info);
  if (uint64_t{png_get_image_width(reader.png, reader.info)} *
          png_get_image_height(reader.png, reader.info) >
      kImagePixelsMax)
    png_error(reader.png, "the image is too large");
  png_set_scale_16(reader.png);
  png_set_palette_to_rgb(reader.png);
  png_set_expand_gray_1_2_4_to_8(reader.png);
  png_set_gray_to_rgb(reader.png);
  png_set_strip_alpha(reader.png);
  png_set_interlace_handling(reader.png);
  png_read_update_info(reader.png, reader.info);
  if (png_get_rowbytes(reader.png, reader.info) !=
      size_t{png_get_image_width(reader.png, reader.info)} * 3)
    png_error(reader.png, "the pixels do not become RGB");
  return true;
}

bool read_rows(PngReader& reader) {
  if (setjmp(png_jmpbuf(reader.png)) != 0) return false;
  png_read_image(reader.png, reader.rows.data());
  png_read_end(reader.png, nullptr);
  return true;
}

}  // namespace

Result<RgbImage> decode_png(ByteView bytes) {
  PngReader reader(bytes);
  reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &reader, on_error, on_warning);
  if (reader.png != nullptr) reader.info = png_create_info_struct(reader.png);
  if (reader.info == nullptr) return fail("PNG: out of memory");
  if (!read_header(reader)) return fail(std::string("PNG header: ") + reader.why);
  reader.out = blank_image({ImageFormat::kPng, png_get_image_width(reader.png, reader.info),
                            png_get_image_height(reader.png, reader.info)});
  for (uint32_t y = 0; y < reader.out.height; ++y)
    reader.rows.push_back(reader.out.pixels.get() + size_t{y} * reader.out.width * 3);
  if (!read_rows(reader)) {
    return fail("PNG of " + std::to_string(reader.out.width) + "x" +
                std::to_string(reader.out.height) + " pixels, near byte " +
                std::to_string(bytes.size() - reader.rest.size()) + " of " +
                std::to_string(bytes.size()) + ": " + reader.why);
  }
  return std::move(reader.out);
}

}  // namespace updraft::image
