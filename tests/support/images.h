// Images for tests that hand them over but do not look at their pixels.
#pragma once

#include <string>

namespace updraft::testing {

// The beginning of a PNG of 4x4 pixels (signature and header), filled up to `bytes` with `fill`:
// what the entrances accept, though no decoder would.
inline std::string png_of_bytes(size_t bytes, char fill = 'i') {
  std::string png("\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x04\0\0\0\x04\x08\x02\0\0\0\x26\x93\x09\x29",
                  33);
  png.resize(bytes, fill);
  return png;
}

}  // namespace updraft::testing
