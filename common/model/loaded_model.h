// How the readers of both containers make a Model: fill the parts, keep the files alive that its
// weights point into.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/model/mapped_file.h"
#include "common/model/model.h"
#include "common/model/weights_builder.h"

namespace updraft {

struct ModelParts {
  std::string path;
  std::string name;
  std::string digest;
  uint64_t file_bytes = 0;
  Hyperparameters hyperparameters;
  BuiltWeights built;
  TokenizerData tokenizer;
  std::vector<std::shared_ptr<const void>> files;           // what the weights' views point into
  std::vector<std::shared_ptr<const MappedFile>> mappings;  // those of `files`; none is null
};

std::shared_ptr<const Model> make_model(ModelParts parts);

// Digest of texts, each separated from the next, as 32 hex digits. FNV-1a with 128 bits: tells
// files apart, is no protection against somebody who forges one.
class Digest {
 public:
  void add(ByteView bytes);
  void add(std::string_view text) { add(as_bytes_view(text)); }
  std::string hex() const;

 private:
  void mix(std::byte b);
  unsigned __int128 state_ =
      (static_cast<unsigned __int128>(0x6c62272e07bb0142ULL) << 64) | 0x62b821756295c58dULL;
};

// The readers behind open_model().
Result<std::shared_ptr<const Model>> open_gguf_model(const std::string& path);
// A folder with config.json, or a .safetensors file with config.json beside it.
Result<std::shared_ptr<const Model>> open_safetensors_model(const std::string& path);

}  // namespace updraft
