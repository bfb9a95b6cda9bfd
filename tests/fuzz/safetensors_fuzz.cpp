// Arbitrary bytes as the files of a Hugging Face folder: what begins like a JSON object goes to the
// configuration's and the tokenizer's reader, everything else to the safetensors container.
#include <cstddef>
#include <cstdint>

#include "common/model/hf_config.h"
#include "common/model/hf_tokenizer.h"
#include "common/model/json.h"
#include "common/model/safetensors.h"

using namespace updraft;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const ByteView bytes(reinterpret_cast<const std::byte*>(data), size);
  if (size > 0 && data[0] == '{') {
    const auto json = parse_json(as_text(bytes));
    if (!json) return 0;
    (void)read_hf_config(*json, "fuzz.json");
    (void)read_tokenizer_json(*json, 0);
    (void)read_tokenizer_json(*json, 100);
    return 0;
  }
  const auto file = SafetensorsFile::parse(bytes, "fuzz.safetensors");
  if (!file) return 0;
  volatile uint64_t total = 0;
  for (const SafetensorsTensor& tensor : (*file)->tensors()) {
    for (const std::byte b : tensor.bytes) total = total + static_cast<uint64_t>(b);
    if ((*file)->find(tensor.name) != &tensor) __builtin_trap();
  }
  return 0;
}
