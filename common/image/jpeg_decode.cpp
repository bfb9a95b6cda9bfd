// JPEG through libjpeg-turbo. As with libpng: errors jump, so what must be freed belongs to
// JpegReader, outside every frame that a jump could leave.
#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>

// clang-format off
#include <jpeglib.h>  // wants <cstdio> before it
// clang-format on

#include "common/image/decoders.h"

namespace updraft::image {
namespace {

constexpr size_t kWindowBytes = 16 * 1024;
// Each scan of a progressive file is a pass over the whole image: a small file with thousands of
// them would keep the decoder busy for minutes.
constexpr int kScansMax = 100;
constexpr long kLibraryBytesMax = 600L << 20;  // coefficients of kImagePixelsMax pixels

struct JpegReader {
  explicit JpegReader(ByteView input) : rest(input) {}
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&jpeg); }

  jpeg_decompress_struct jpeg{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  jpeg_progress_mgr progress{};
  std::jmp_buf back;
  ByteView rest;  // not yet in the window
  uint8_t window[kWindowBytes];
  char why[JMSG_LENGTH_MAX] = "";
  RgbImage out;
};

JpegReader& reader_of(j_common_ptr jpeg) { return *static_cast<JpegReader*>(jpeg->client_data); }
JpegReader& reader_of(j_decompress_ptr jpeg) {
  return reader_of(reinterpret_cast<j_common_ptr>(jpeg));
}

[[noreturn]] void give_up(JpegReader& reader, const char* why) {
  std::snprintf(reader.why, sizeof reader.why, "%s", why);
  std::longjmp(reader.back, 1);
}
[[noreturn]] void on_error(j_common_ptr jpeg) {
  JpegReader& reader = reader_of(jpeg);
  jpeg->err->format_message(jpeg, reader.why);
  std::longjmp(reader.back, 1);
}
// Warnings are small damage that every viewer passes over.
void on_message(j_common_ptr, int) {}

void begin_source(j_decompress_ptr) {}
boolean fill_window(j_decompress_ptr jpeg) {
  JpegReader& reader = reader_of(jpeg);
  const size_t bytes = std::min(reader.rest.size(), kWindowBytes);
  if (bytes == 0) give_up(reader, "the file ends early");
  std::memcpy(reader.window, reader.rest.data(), bytes);
  reader.rest = reader.rest.subspan(bytes);
  jpeg->src->next_input_byte = reader.window;
  jpeg->src->bytes_in_buffer = bytes;
  return TRUE;
}
void skip_bytes(j_decompress_ptr jpeg, long count) {
  if (count <= 0) return;
  JpegReader& reader = reader_of(jpeg);
  auto left = static_cast<size_t>(count);
  if (left <= jpeg->src->bytes_in_buffer) {
    jpeg->src->next_input_byte += left;
    jpeg->src->bytes_in_buffer -= left;
    return;
  }
  left -= jpeg->src->bytes_in_buffer;
  jpeg->src->bytes_in_buffer = 0;
  if (left > reader.rest.size()) give_up(reader, "the file ends early");
  reader.rest = reader.rest.subspan(left);
}
void end_source(j_decompress_ptr) {}

void watch_scans(j_common_ptr jpeg) {
  const auto* decompress = reinterpret_cast<j_decompress_ptr>(jpeg);
  if (decompress->input_scan_number > kScansMax)
    give_up(reader_of(jpeg), "the file has too many scans");
}

bool read_header(JpegReader& reader) {
  jpeg_decompress_struct& jpeg = reader.jpeg;
  jpeg.err = jpeg_std_error(&reader.errors);
  reader.errors.error_exit = on_error;
  reader.errors.emit_message = on_message;
  jpeg.client_data = &reader;
  if (setjmp(reader.back) != 0) return false;
  jpeg_create_decompress(&jpeg);
  jpeg.client_data = &reader;
  jpeg.mem->max_memory_to_use = kLibraryBytesMax;
  reader.source.init_source = begin_source;
  reader.source.fill_input_buffer = fill_window;
  reader.source.skip_input_data = skip_bytes;
  reader.source.resync_to_restart = jpeg_resync_to_restart;
  reader.source.term_source = end_source;
  jpeg.src = &reader.source;
  reader.progress.progress_monitor = watch_scans;
  jpeg.progress = &reader.progress;
  jpeg_read_header(&jpeg, TRUE);
  // Checked again on what the library read: the bytes may have changed since image_info().
  if (jpeg.image_width > kImageSideMax || jpeg.image_height > kImageSideMax ||
      uint64_t{jpeg.image_width} * jpeg.image_height > kImagePixelsMax)
    give_up(reader, "the image is too large");
  if (jpeg.num_components != 1 && jpeg.num_components != 3)
    give_up(reader, "neither grey nor colour");
  jpeg.out_color_space = JCS_RGB;
  jpeg.dct_method = JDCT_ISLOW;
  return true;
}

bool read_rows(JpegReader& reader) {
  jpeg_decompress_struct& jpeg = reader.jpeg;
  if (setjmp(reader.back) != 0) return false;
  jpeg_start_decompress(&jpeg);
  if (jpeg.output_components != 3 || jpeg.output_width != reader.out.width ||
      jpeg.output_height != reader.out.height)
    give_up(reader, "the pixels do not become RGB");
  while (jpeg.output_scanline < jpeg.output_height) {
    JSAMPROW row = reader.out.pixels.get() + size_t{jpeg.output_scanline} * reader.out.width * 3;
    jpeg_read_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_decompress(&jpeg);
  return true;
}

}  // namespace

Result<RgbImage> decode_jpeg(ByteView bytes) {
  // On the heap: the window would be much for a small stack.
  const auto reader = std::make_unique<JpegReader>(bytes);
  if (!read_header(*reader)) return fail(std::string("JPEG header: ") + reader->why);
  reader->out =
      blank_image({ImageFormat::kJpeg, reader->jpeg.image_width, reader->jpeg.image_height});
  if (!read_rows(*reader)) {
    return fail("JPEG of " + std::to_string(reader->out.width) + "x" +
                std::to_string(reader->out.height) + " pixels, near byte " +
                std::to_string(bytes.size() - reader->rest.size()) + " of " +
                std::to_string(bytes.size()) + ": " + reader->why);
  }
  return std::move(reader->out);
}

}  // namespace updraft::image
