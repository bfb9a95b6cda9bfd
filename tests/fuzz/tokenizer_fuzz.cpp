// Hostile bytes into everything of common/text that takes bytes from outside: texts to encode, a
// template's source, and tokenizer data itself. What must hold: no crash, no control token out of
// plain text, bytes come back.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/check.h"
#include "common/text/chat_template.h"
#include "common/text/jinja_shape.h"
#include "common/text/tokenizer.h"

namespace {

using updraft::ChatTemplate;
using updraft::SpecialText;
using updraft::StreamDecoder;
using updraft::TextSpan;
using updraft::Tokenizer;
using updraft::TokenizerData;
using SharedTokenizer = std::shared_ptr<const Tokenizer>;

std::string utf8(uint32_t c) {
  if (c < 0x80) return std::string(1, static_cast<char>(c));
  return {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
}

TokenizerData bpe_data(const char* pre) {
  TokenizerData data;
  data.model = "gpt2";
  data.pre = pre;
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    data.tokens.push_back(utf8(prints ? byte : next++));
  }
  data.merges = {"a a", "aa aa", "Ġ Ġ", "< |", "<| e", "Ã ©"};
  for (const char* token : {"aa", "aaaa", "ĠĠ", "<|", "<|e", "Ã©"}) data.tokens.push_back(token);
  data.types.assign(data.tokens.size(), 1);
  for (const char* token : {"<|end|>", "<|end", "|>"}) {
    data.tokens.push_back(token);
    data.types.push_back(3);
  }
  data.tokens.push_back("<think>");
  data.types.push_back(4);
  return data;
}

TokenizerData spm_data() {
  TokenizerData data;
  data.model = "llama";
  data.tokens = {"<unk>", "<s>", "</s>"};
  data.types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    data.tokens.push_back(std::string("<0x") + digits[byte >> 4] + digits[byte & 15] + ">");
    data.types.push_back(6);
  }
  for (const char* token :
       {"▁", "a", "aa", "▁a", "▁▁", "<", "/", "</", "s", "</s", ">", "é", "|>"}) {
    data.tokens.push_back(token);
    data.types.push_back(1);
  }
  for (size_t i = 0; i < data.tokens.size(); ++i) data.scores.push_back(-static_cast<float>(i % 7));
  data.unknown_id = 0;
  data.bos_id = 1;
  data.eos_id = 2;
  return data;
}

void check_text(const SharedTokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  tokenizer->encode(text, SpecialText::kPlain, true, ids);
  for (const int32_t id : ids) UPDRAFT_CHECK(!tokenizer->is_control(id));
  // SPM reads U+2581 as a space; all other bytes come back.
  if (!tokenizer->is_spm() || text.find("\xE2\x96\x81") == std::string_view::npos) {
    UPDRAFT_CHECK(tokenizer->decode(ids, true) == text);
  }
  StreamDecoder decoder(tokenizer, true);
  std::string streamed;
  for (const int32_t id : ids) streamed += decoder.push(id);
  streamed += decoder.flush();
  const size_t third = text.size() / 3;
  const TextSpan spans[] = {{text.substr(0, third), SpecialText::kParse},
                            {text.substr(third, third), SpecialText::kPlain},
                            {text.substr(2 * third), SpecialText::kParse}};
  ids.clear();
  tokenizer->encode_spans(spans, false, ids);
  for (const int32_t id : ids) UPDRAFT_CHECK(id >= 0 && id < tokenizer->vocab_count());
}

// A vocabulary out of the input's lines: most are refused, the others must work.
void check_data(std::string_view text) {
  TokenizerData data = text.size() % 2 == 0 ? bpe_data("qwen2") : spm_data();
  std::string line;
  for (const char c : text) {
    if (c != '\n') {
      line.push_back(c);
      continue;
    }
    if (line.starts_with('+')) {
      data.tokens.push_back(line.substr(1));
      data.types.push_back(static_cast<uint8_t>(line.back()) % 7);
      if (!data.scores.empty()) data.scores.push_back(static_cast<float>(line.size()));
    } else if (line.starts_with('!')) {
      data.eos_id = static_cast<int32_t>(line.size() * 40) - 100;
    } else {
      data.merges.push_back(line);
    }
    line.clear();
  }
  const auto tokenizer = Tokenizer::create(data);
  if (!tokenizer) {
    UPDRAFT_CHECK(!tokenizer.message().empty());
    return;
  }
  std::vector<int32_t> ids;
  (*tokenizer)->encode(text, SpecialText::kPlain, true, ids);
  for (const int32_t id : ids)
    UPDRAFT_CHECK(!(*tokenizer)->is_control(id) || id == data.unknown_id);
  (void)(*tokenizer)->decode(ids, true);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const std::vector<SharedTokenizer> tokenizers = [] {
    std::vector<SharedTokenizer> all;
    for (const char* pre :
         {"llama-bpe", "qwen2", "gpt-2", "starcoder", "falcon", "deepseek-coder"}) {
      all.push_back(Tokenizer::create(bpe_data(pre)).value());
    }
    all.push_back(Tokenizer::create(spm_data()).value());
    return all;
  }();
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(bytes) + 1, size - 1);
  const size_t target = bytes[0] % (tokenizers.size() + 2);
  if (target < tokenizers.size()) {
    check_text(tokenizers[target], text);
  } else if (target == tokenizers.size()) {
    const auto shape = updraft::jinja_shape(text);
    if (shape) (void)updraft::jinja_shape(*shape);
    (void)ChatTemplate::recognise(text);
  } else {
    check_data(text);
  }
  return 0;
}
