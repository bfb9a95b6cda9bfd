// Readers of the vector files, shared by the tests of this folder.
#include "tests/common/text/vocabulary.h"

#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "common/model/tokenizer_file.h"
#include "tests/support/shared_data.h"

namespace updraft::testing {
namespace {

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::optional<TokenizerData> shared_vocabulary(const std::string& name) {
  const auto path = shared_data("tokenizers/ggml-vocab-" + name + ".gguf");
  if (!path) return std::nullopt;
  auto data = open_tokenizer_data(*path);
  REQUIRE_MESSAGE(data.ok(), data.message());
  return std::move(*data);
}

std::shared_ptr<const Tokenizer> shared_tokenizer(const std::string& name) {
  const auto data = shared_vocabulary(name);
  if (!data) return nullptr;
  auto made = Tokenizer::create(*data);
  REQUIRE_MESSAGE(made.ok(), made.message());
  return *made;
}

TokenizerData byte_vocabulary(const std::vector<std::string>& merges,
                              const std::vector<std::string>& controls, const std::string& pre) {
  TokenizerData data;
  data.model = "gpt2";
  data.pre = pre;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const uint32_t c = prints ? byte : next++;
    data.tokens.push_back(c < 0x80 ? std::string(1, static_cast<char>(c))
                                   : std::string{static_cast<char>(0xC0 | c >> 6),
                                                 static_cast<char>(0x80 | (c & 63))});
  }
  for (const std::string& merge : merges) {
    const size_t space = merge.find(' ', 1);
    data.tokens.push_back(merge.substr(0, space) + merge.substr(space + 1));
  }
  data.merges = merges;
  data.types.assign(data.tokens.size(), 1);
  for (const std::string& control : controls) {
    data.tokens.push_back(control);
    data.types.push_back(3);
  }
  return data;
}

TokenizerData spm_vocabulary(const std::vector<std::string>& words) {
  TokenizerData data;
  data.model = "llama";
  data.tokens = {"<unk>", "<s>", "</s>"};
  data.types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    data.tokens.push_back(name);
    data.types.push_back(6);
  }
  data.scores.assign(data.tokens.size(), 0.0F);
  float score = 0.0F;
  for (const std::string& word : words) {
    data.tokens.push_back(word);
    data.types.push_back(1);
    data.scores.push_back(score -= 1.0F);
  }
  data.unknown_id = 0;
  data.bos_id = 1;
  data.eos_id = 2;
  return data;
}

std::optional<std::vector<VectorCase>> vector_cases(const std::string& name) {
  const auto inputs = shared_data("tokenizers/ggml-vocab-" + name + ".gguf.inp");
  const auto outputs = shared_data("tokenizers/ggml-vocab-" + name + ".gguf.out");
  if (!inputs || !outputs) return std::nullopt;
  const std::string separator = "\n__ggml_vocab_test__\n";
  std::string text = contents(*inputs);
  std::istringstream lines(contents(*outputs));
  std::vector<VectorCase> cases;
  for (size_t end; (end = text.find(separator)) != std::string::npos;
       text.erase(0, end + separator.size())) {
    VectorCase& made = cases.emplace_back();
    made.text = text.substr(0, end);
    std::string line;
    REQUIRE(std::getline(lines, line));
    std::istringstream numbers(line);
    for (int32_t id; numbers >> id;) made.ids.push_back(id);
  }
  CHECK(text.empty());
  return cases;
}

}  // namespace updraft::testing
