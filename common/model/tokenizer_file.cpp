// Opening only the tokenizer of a model file.
#include "common/model/tokenizer_file.h"

#include <filesystem>

#include "common/model/gguf_model.h"
#include "common/model/hf_tokenizer.h"

namespace updraft {
namespace {

Result<TokenizerData> open_any(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return read_hf_tokenizer(path, 0);
  const auto file = GgufFile::open(path);
  if (!file) return file.error();
  return read_tokenizer(**file);
}

}  // namespace

Result<TokenizerData> open_tokenizer_data(const std::string& path) {
  auto data = open_any(path);
  if (data && data->model.empty()) return fail(path + ": has no tokenizer");
  return data;
}

}  // namespace updraft
