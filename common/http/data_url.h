// Images inside a request: "data:image/png;base64,..." URLs. Pure: what is accepted is known by its
// header to be PNG or JPEG of an acceptable size; decoding the picture is the model's part.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "common/base/result.h"

namespace updraft {

// Standard base64 (RFC 4648 section 4) with its padding; no white space, no other alphabet, no
// stray bits. The error names the offset.
Result<std::string> decode_base64(std::string_view text);

struct DataUrlImage {
  std::string mime;   // "image/png" or "image/jpeg", by the content
  std::string bytes;  // the file as the client had it
};

// Errors: a remote URL (this server fetches nothing), another scheme, another media type, bad
// base64, more than bytes_max, or content that image_info() refuses.
Result<DataUrlImage> decode_image_url(std::string_view url, size_t bytes_max);

}  // namespace updraft
