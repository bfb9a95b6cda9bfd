// The two libraries' decoders behind decode.h. Private to common/image.
#pragma once

#include "common/image/decode.h"

namespace updraft::image {

Result<RgbImage> decode_png(ByteView bytes);
Result<RgbImage> decode_jpeg(ByteView bytes);

// Room for width x height pixels. The memory is touched only as rows are written, so a header that
// promises much and delivers nothing costs nothing.
RgbImage blank_image(const ImageInfo& size);

}  // namespace updraft::image
