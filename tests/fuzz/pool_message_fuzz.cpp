// Frames of the pool protocol from a hostile peer: decoding must end in a message or an error, and
// what it accepts must survive a second trip unchanged.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "common/message/chunker.h"
#include "common/message/pool_message.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const updraft::ByteView frame(reinterpret_cast<const std::byte*>(data), size);
  const auto message = updraft::decode(frame);
  if (message) {
    const auto encoded = updraft::encode(*message);
    const auto again = updraft::decode(encoded);
    if (!again || updraft::encode(*again) != encoded) std::abort();
  }
  updraft::MessageReader reader;
  (void)reader.add(frame);
  return 0;
}
