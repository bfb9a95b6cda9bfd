// Arbitrary bytes as a GGUF file: container, hyperparameters, tokenizer, weights. Whatever is
// accepted is read in full, so that a view outside the input is seen by the sanitizer.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/model/gguf_model.h"

using namespace updraft;

namespace {

// Touches every byte; the sum keeps the reads.
uint64_t sum(ByteView bytes) {
  uint64_t total = 0;
  for (const std::byte b : bytes) total += static_cast<uint64_t>(b);
  return total;
}

uint64_t read_everything(const GgufFile& file) {
  uint64_t total = 0;
  for (const GgufKey& key : file.keys()) {
    total += key.name.size() + key.value.describe().size() + sum(key.value.encoded());
    if (const auto texts = key.value.texts()) {
      for (const std::string_view text : *texts) total += sum(as_bytes_view(text));
    }
    if (const auto integers = key.value.integers()) total += integers->size();
    if (const auto numbers = key.value.numbers()) total += numbers->size();
  }
  for (const GgufTensor& tensor : file.tensors()) total += sum(tensor.bytes) + tensor.elems();
  return total;
}

uint64_t sum(const WeightView& view) {
  if (view.empty()) return 0;
  return sum(ByteView(view.data, static_cast<size_t>(view.rows * row_bytes(view.type, view.cols))));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file =
      GgufFile::parse(ByteView(reinterpret_cast<const std::byte*>(data), size), "fuzz.gguf");
  if (!file) return 0;
  volatile uint64_t total = read_everything(**file);
  (void)read_hyperparameters(**file);
  (void)read_tokenizer(**file);
  const auto model = make_gguf_model({*file}, "fuzz.gguf");
  if (!model) return 0;
  const Weights& weights = (*model)->weights();
  total = total + sum(weights.embedding) + sum(weights.head);
  for (const LayerWeights& layer : weights.layers) {
    for (const WeightView* view :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      total = total + sum(*view);
    }
  }
  return 0;
}
