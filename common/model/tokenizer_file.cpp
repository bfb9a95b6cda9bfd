// Opening only the tokenizer of a model file.
#include "common/model/tokenizer_file.h"

#include "common/model/gguf_model.h"

namespace updraft {

Result<TokenizerData> open_tokenizer_data(const std::string& path) {
  const auto file = GgufFile::open(path);
  if (!file) return file.error();
  auto data = read_tokenizer(**file);
  if (data && data->model.empty()) return fail(path + ": key tokenizer.ggml.model is missing");
  return data;
}

}  // namespace updraft
