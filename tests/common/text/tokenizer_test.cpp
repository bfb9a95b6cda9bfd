// Both tokenizers on vocabularies made by hand: merging order, special tokens and trust, what is
// refused, stop ids.
#include "common/text/tokenizer.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>

#include "tests/common/text/vocabulary.h"

using namespace updraft;
using updraft::testing::byte_vocabulary;
using updraft::testing::spm_vocabulary;
using Ids = std::vector<int32_t>;

namespace {

std::shared_ptr<const Tokenizer> made(const TokenizerData& data) {
  auto tokenizer = Tokenizer::create(data);
  REQUIRE_MESSAGE(tokenizer.ok(), tokenizer.message());
  return *tokenizer;
}

std::string refusal(const TokenizerData& data) {
  const auto tokenizer = Tokenizer::create(data);
  REQUIRE_FALSE(tokenizer.ok());
  return tokenizer.message();
}

Ids plain(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode_all(text, SpecialText::kPlain, false);
}

Ids parsed(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode_all(text, SpecialText::kParse, false);
}

bool contains(const Ids& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

TEST_CASE("BPE joins the lowest rank first, the leftmost of equal pairs") {
  // ids: ab 256, bc 257, abc 258, aa 259
  const auto tokenizer = made(byte_vocabulary({"b c", "a b", "a bc", "a a"}, {}));
  CHECK(tokenizer->vocab_count() == 260);
  CHECK(plain(*tokenizer, "abc") == Ids{258});  // b c before a b
  CHECK(plain(*tokenizer, "ab") == Ids{257});
  CHECK(plain(*tokenizer, "aaa") == Ids{259, 'a'});  // leftmost
  CHECK(plain(*tokenizer, "aaaab") == Ids{259, 'a', 257});
  CHECK(plain(*tokenizer, "") == Ids{});
}

TEST_CASE("ignore_merges takes a piece that is a token as it is") {
  TokenizerData data = byte_vocabulary({"a b", "b c", "a bc"}, {});
  data.pre = "llama-bpe";
  CHECK(plain(*made(data), "abc") == Ids{258});
  data.ignore_merges = false;
  CHECK(plain(*made(data), "abc") == Ids{256, 'c'});
}

TEST_CASE("every byte string survives BPE, also what is not UTF-8") {
  const auto tokenizer = made(byte_vocabulary({"a b", "Ã ©"}, {"<|end|>"}));
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  for (const std::string& text :
       {all, std::string("\xC3"), std::string("ab\xE4\xBD é \xFF\xFE"), std::string(3, '\0')}) {
    const Ids ids = plain(*tokenizer, text);
    CHECK(tokenizer->decode(ids, true) == text);
    CHECK(parsed(*tokenizer, text) == ids);
  }
  CHECK(plain(*tokenizer, "é") == Ids{257});
}

TEST_CASE("SPM joins the highest score first, spells spaces, and falls back to bytes") {
  // ids 259...: "▁" "a" "b" "c" "bc" "ab" "▁a" "▁bc"
  const auto tokenizer = made(spm_vocabulary({"bc", "▁bc", "ab", "▁a", "▁", "a", "b", "c"}));
  const int32_t bc = 259, space_bc = 260, ab = 261, space_a = 262, space = 263, a = 264, b = 265;
  CHECK(plain(*tokenizer, "bc") == Ids{space_bc});
  CHECK(plain(*tokenizer, "abc") == Ids{space_a, bc});
  CHECK(plain(*tokenizer, "  ab") == Ids{space, space, space, ab});
  CHECK(plain(*tokenizer, "b") == Ids{space, b});
  CHECK(plain(*tokenizer, "aé") == Ids{space_a, 3 + 0xC3, 3 + 0xA9});
  CHECK(plain(*tokenizer, "\xFF") == Ids{space, 3 + 0xFF});
  CHECK(plain(*tokenizer, "") == Ids{});
  CHECK(tokenizer->encode_all("a", SpecialText::kPlain, true) == Ids{1, space_a});
  Ids inside;
  tokenizer->encode("a", SpecialText::kPlain, false, inside);
  CHECK(inside == Ids{a});
  CHECK(tokenizer->decode(Ids{1, space_a, bc, 3 + 0xC3, 3 + 0xA9, 2}, true) == "abcé");
  CHECK(tokenizer->decode(Ids{space_a, bc}, false) == " abc");
  CHECK(tokenizer->is_spm());
}

TEST_CASE("SPM without a space prefix neither adds nor drops a space") {
  TokenizerData data = spm_vocabulary({"▁a", "▁", "a"});
  data.add_space_prefix = false;
  const auto tokenizer = made(data);
  CHECK(plain(*tokenizer, "a") == Ids{261});
  CHECK(plain(*tokenizer, " a") == Ids{259});
  CHECK(tokenizer->decode(Ids{259}, true) == " a");
}

TEST_CASE("of equal scores SPM joins the leftmost pair") {
  TokenizerData data = spm_vocabulary({"aa", "a", "▁"});
  CHECK(plain(*made(data), "aaa") == Ids{261, 259, 260});
}

TEST_CASE("SPM text cannot spell a byte, unknown or control token") {
  TokenizerData data = spm_vocabulary(
      {"<", "/", "s", ">", "</", "</s", "<0", "x", "4", "1", "<0x", "<0x4", "<0x41", "▁"});
  data.scores[2] = 10.0F;  // </s> would be the best of all
  const auto tokenizer = made(data);
  for (const char* text : {"</s>", "<s>", "<unk>", "<0x41>"}) {
    const Ids ids = plain(*tokenizer, text);
    CHECK(ids.size() > 1);
    for (const int32_t id : ids) CHECK_FALSE(tokenizer->is_control(id));
    CHECK(tokenizer->decode(ids, true) == text);
  }
  CHECK(parsed(*tokenizer, "</s>") == Ids{2});
}

TEST_CASE("special tokens: parsed only where trusted, user-defined ones everywhere") {
  TokenizerData data = byte_vocabulary({"a b"}, {"<|end|>", "<|end|>x", "<think>"});
  data.types.back() = 4;
  const auto tokenizer = made(data);
  const int32_t end = 257, end_x = 258, think = 259;
  CHECK(parsed(*tokenizer, "ab<|end|>ab<|end|>xab") ==
        Ids{256, end, 256, end_x, 256});  // the longest
  CHECK(parsed(*tokenizer, "<|end|><|end|>") == Ids{end, end});
  const Ids injected = plain(*tokenizer, "ab<|end|><think>ab");
  CHECK_FALSE(contains(injected, end));
  CHECK(contains(injected, think));
  CHECK(tokenizer->decode(injected, true) == "ab<|end|><think>ab");
  CHECK(tokenizer->decode(Ids{256, end, think, 256}, true) == "ab<think>ab");
  CHECK(tokenizer->is_control(end));
  CHECK_FALSE(tokenizer->is_control(think));
  CHECK(tokenizer->special_id("<|end|>") == end);
  CHECK(tokenizer->special_id("<|end|") == -1);
  CHECK(tokenizer->token_text(end_x) == "<|end|>x");
}

TEST_CASE("a control token needs every byte trusted, and neighbouring trusted spans are one text") {
  const auto tokenizer = made(byte_vocabulary({"a b"}, {"<|end|>"}));
  const int32_t end = 257;
  const auto ids = [&](std::vector<TextSpan> spans) {
    Ids out;
    tokenizer->encode_spans(spans, true, out);
    return out;
  };
  constexpr auto kParse = SpecialText::kParse, kPlain = SpecialText::kPlain;
  CHECK(ids({{"<|e", kParse}, {"nd|>", kParse}}) == Ids{end});
  CHECK(ids({{"<|e", kParse}, {"", kPlain}, {"nd|>", kParse}}).size() == 7);
  CHECK(ids({{"<|e", kParse}, {"nd|>", kPlain}}).size() == 7);
  CHECK(ids({{"<|e", kPlain}, {"nd|>", kParse}}).size() == 7);
  CHECK(ids({{"<|end|>", kPlain}, {"<|end|>", kParse}, {"<|end|>", kPlain}}).size() == 15);
  CHECK(ids({{"x", kPlain}, {"<|end|>", kParse}}) == Ids{'x', end});
  // Words and merges cross the border.
  CHECK(ids({{"a", kParse}, {"b", kPlain}}) == Ids{256});
  CHECK(ids({}) == Ids{});
}

TEST_CASE("SPM puts its space behind special tokens, once per run") {
  const auto tokenizer = made(spm_vocabulary({"▁a", "▁", "a"}));
  CHECK(parsed(*tokenizer, "<s>a</s>a") == Ids{1, 259, 2, 259});
  Ids out;
  tokenizer->encode_spans(
      std::vector<TextSpan>{{"<s>a", SpecialText::kParse}, {"a", SpecialText::kPlain}}, true, out);
  CHECK(out == Ids{1, 259, 261});
}

TEST_CASE("a merge that would spell a control token is never done") {
  TokenizerData data = byte_vocabulary({"a b"}, {});
  data.types[256] = 3;
  const auto tokenizer = made(data);
  CHECK(plain(*tokenizer, "ab") == Ids{'a', 'b'});
  CHECK(parsed(*tokenizer, "ab") == Ids{256});
}

TEST_CASE("an end of turn that a file lists as an ordinary word is a control token all the same") {
  TokenizerData data = byte_vocabulary({}, {"<|im_end|>", "<|eot|>"});
  data.types[256] = 1;
  data.types[257] = 4;
  data.eot_id = 257;
  const auto tokenizer = made(data);
  CHECK_FALSE(contains(plain(*tokenizer, "<|im_end|>"), 256));
  CHECK_FALSE(contains(plain(*tokenizer, "<|eot|>"), 257));
  CHECK(parsed(*tokenizer, "<|im_end|><|eot|>") == Ids{256, 257});
}

TEST_CASE("stop ids: the file's, the extra ones, and the known names") {
  TokenizerData data = byte_vocabulary(
      {}, {"<|a|>", "<|b|>", "<|c|>", "<|d|>", "<|im_end|>", "<|eot_id|>", "<|user|>"});
  data.eos_id = 256;
  data.eot_id = 257;
  data.eom_id = 258;
  data.extra_eos_ids = {259, 256};
  CHECK(made(data)->stop_ids() == Ids{256, 257, 258, 259, 260, 261});
}

TEST_CASE("stop ids of a GLM vocabulary include its role markers and </answer>") {
  TokenizerData data = byte_vocabulary(
      {}, {"<|endoftext|>", "<|user|>", "<|observation|>", "</answer>", "<answer>"});
  data.types[259] = data.types[260] = 4;
  data.eos_id = 256;
  CHECK(made(data)->stop_ids() == Ids{256, 257, 258, 259});
  data.tokens[258] = "<|other|>";
  CHECK(made(data)->stop_ids() == Ids{256});
}

TEST_CASE("unused and filler tokens are banned, stop ids never") {
  TokenizerData data =
      byte_vocabulary({"a b"}, {"[PAD151646]", "[PADDING]", "spare", "<|endoftext|>"});
  data.types[258] = 1;
  data.types[259] = 5;
  data.types[260] = 5;
  data.eos_id = 260;
  const auto tokenizer = made(data);
  CHECK(tokenizer->banned_ids() == Ids{257, 259});
  CHECK(tokenizer->stop_ids() == Ids{260});
}

TEST_CASE("BOS: the splitter's default, the file's word, and nothing without an id") {
  TokenizerData data = byte_vocabulary({}, {"<|bos|>", "<|eos|>"});
  data.bos_id = 256;
  data.eos_id = 257;
  CHECK_FALSE(made(data)->add_bos());
  data.pre = "llama-bpe";
  CHECK(made(data)->encode_all("a", SpecialText::kPlain, true) == Ids{256, 'a'});
  data.add_bos = false;
  data.add_eos = true;
  CHECK(made(data)->encode_all("a", SpecialText::kPlain, true) == Ids{'a', 257});
  data.add_bos.reset();
  data.bos_id = -1;
  CHECK_FALSE(made(data)->add_bos());
  data.add_bos = true;
  CHECK(refusal(data) == "tokenizer: add_bos_token is true but the file names no bos_token_id");
}

TEST_CASE("ids without text: all decode to nothing, the file's ends still end") {
  TokenizerData data;
  data.bos_id = 1;
  data.eos_id = 2;
  data.extra_eos_ids = {7};
  const auto ids = Tokenizer::of_ids(data, 8);
  REQUIRE_MESSAGE(ids.ok(), ids.message());
  CHECK_FALSE((*ids)->has_text());
  CHECK((*ids)->vocab_count() == 8);
  CHECK((*ids)->decode(std::vector<int32_t>{0, 3, 7}, true).empty());
  CHECK((*ids)->stop_ids() == std::vector<int32_t>{2, 7});
  CHECK((*ids)->banned_ids().empty());
  data.eos_id = 8;
  CHECK(Tokenizer::of_ids(data, 8).message() ==
        "tokenizer: eos_token_id 8 is not an id of a vocabulary of 8 tokens");
}

TEST_CASE("broken tokenizer data is refused with the thing, the place and the value") {
  const TokenizerData good = byte_vocabulary({"a b"}, {"<|end|>"});
  const auto with = [&](auto change) {
    TokenizerData data = good;
    change(data);
    return refusal(data);
  };
  CHECK(with([](auto& d) { d.model = ""; }) ==
        "tokenizer: the model has none (a GGUF file names it in tokenizer.ggml.model, a folder of "
        "safetensors has it in tokenizer.json); without it only updraft run --prompt-ids can use "
        "the model");
  CHECK(with([](auto& d) { d.model = "bert"; }) ==
        "tokenizer: model 'bert' is not supported (known: gpt2, llama)");
  CHECK(with([](auto& d) { d.pre = "viking"; })
            .starts_with("tokenizer: tokenizer.ggml.pre 'viking' is not a known splitter (known: "
                         "llama-bpe, "));
  CHECK(with([](auto& d) { d.tokens.clear(); }) == "tokenizer: the vocabulary has no tokens");
  CHECK(with([](auto& d) { d.types.pop_back(); }) ==
        "tokenizer: token_type has 257 entries for 258 tokens");
  CHECK(with([](auto& d) { d.scores = {1.0F}; }) ==
        "tokenizer: scores has 1 entries for 258 tokens");
  CHECK(with([](auto& d) { d.types[7] = 0; }) == "tokenizer: token_type[7] is 0, not one of 1..6");
  CHECK(with([](auto& d) { d.types[7] = 7; }) == "tokenizer: token_type[7] is 7, not one of 1..6");
  CHECK(with([](auto& d) { d.eos_id = 258; }) ==
        "tokenizer: eos_token_id 258 is not an id of a vocabulary of 258 tokens");
  CHECK(with([](auto& d) { d.bos_id = -2; }) ==
        "tokenizer: bos_token_id -2 is not an id of a vocabulary of 258 tokens");
  CHECK(with([](auto& d) {
          d.extra_eos_ids = {5, 1000};
        }) == "tokenizer: eos_token_id 1000 is not an id of a vocabulary of 258 tokens");
  CHECK(with([](auto& d) { d.merges = {"ab"}; }) == "tokenizer: merges[0] 'ab' is not two tokens");
  CHECK(with([](auto& d) {
          d.merges = {"a b", "a "};
        }) == "tokenizer: merges[1] 'a ' is not two tokens");
  CHECK(with([](auto& d) { d.merges = {" "}; }) == "tokenizer: merges[0] ' ' is not two tokens");
  CHECK(with([](auto& d) { d.merges = {""}; }) == "tokenizer: merges[0] '' is not two tokens");
  CHECK(with([](auto& d) {
          d.merges = {"a b", "a zz"};
        }) == "tokenizer: merges[1] 'a zz': 'zz' is not in the vocabulary");
  CHECK(with([](auto& d) {
          d.merges = {"a b", "b a"};
        }) == "tokenizer: merges[1] 'b a': 'ba' is not in the vocabulary");
  CHECK(with([](auto& d) { d.merges.clear(); }) ==
        "tokenizer: no merges, but the vocabulary has tokens of several bytes ('ab')");
  CHECK(with([](auto& d) { d.tokens['q'] = "~~"; }) ==
        "tokenizer: the vocabulary has no token for the character 'q', so it is not a byte-level "
        "(gpt2) one");

  const auto spm_with = [&](auto change) {
    TokenizerData data = spm_vocabulary({"▁a"});
    change(data);
    return refusal(data);
  };
  CHECK(spm_with([](auto& d) { d.scores.clear(); }) ==
        "tokenizer: a llama (SentencePiece) vocabulary needs scores, the file has none");
  CHECK(spm_with([](auto& d) { d.scores[4] = std::numeric_limits<float>::quiet_NaN(); }) ==
        "tokenizer: scores[4] is not a number");
  CHECK(spm_with([](auto& d) { d.types[0] = 6; }) ==
        "tokenizer: token 0 '<unk>' is of type byte but not named <0xHH>");
  CHECK(spm_with([](auto& d) {
          d.unknown_id = -1;
          d.tokens[3 + 0xE4] = "x";
          d.types[3 + 0xE4] = 1;
        }) == "tokenizer: no byte token <0xE4> and no unknown token to stand in for it");
}

TEST_CASE("an SPM vocabulary without byte tokens writes one unknown token per character") {
  TokenizerData data;
  data.model = "llama";
  data.tokens = {"<unk>", "▁", "a"};
  data.types = {2, 1, 1};
  data.scores = {0, -1, -2};
  data.unknown_id = 0;
  const auto tokenizer = made(data);
  CHECK(plain(*tokenizer, "aéa") == Ids{1, 2, 0, 2});
  CHECK(plain(*tokenizer, "éé") == Ids{1, 0, 0});
}

TEST_CASE("an unknown token that ends texts cannot stand in for bytes") {
  TokenizerData data = spm_vocabulary({"▁a"});
  data.unknown_id = data.eos_id;
  CHECK(made(data)->stop_ids() == Ids{2});  // not needed: every byte has its token
  data.tokens[3 + 0xE4] = "x";
  data.types[3 + 0xE4] = 1;
  CHECK(refusal(data) ==
        "tokenizer: the vocabulary lacks byte tokens and its unknown token 2 ends a text, so a "
        "user could end one");
}

TEST_CASE("files without token types: byte tokens are known by their names") {
  TokenizerData data = spm_vocabulary({"▁a"});
  data.types.clear();
  const auto tokenizer = made(data);
  CHECK(tokenizer->decode(plain(*tokenizer, "a€"), true) == "a€");
  CHECK(tokenizer->piece(3 + 0x41) == "A");
}

TEST_CASE("bytes that a vocabulary cannot spell are dropped, the others stay") {
  TokenizerData data = byte_vocabulary({"a b"}, {});
  data.tokens[0xFF] = "zz";
  const auto tokenizer = made(data);
  CHECK(plain(*tokenizer, "ab\xFFq") == Ids{256, 'q'});
  CHECK(plain(*tokenizer, "\xFF") == Ids{});
}

TEST_CASE("a megabyte of hostile text is tokenized and comes back") {
  constexpr size_t kCount = 1 << 20;
  std::vector<std::string> merges;
  std::string run = "a";
  for (int i = 0; i < 5; ++i, run += run) merges.push_back(run + " " + run);  // aa, aaaa ... 32 a
  merges.push_back("Ġ Ġ");
  const auto bpe = made(byte_vocabulary(merges, {"<|end|>"}, "qwen2"));
  const auto spm = made(spm_vocabulary({"aaaa", "aa", "a", "▁▁", "▁"}));
  std::string brackets;
  while (brackets.size() < kCount) brackets += "<|end|<|e";
  for (const std::string& text : {std::string(kCount, 'a'), std::string(kCount, ' '),
                                  std::string(kCount, '\xF0'), brackets}) {
    const Ids by_bpe = parsed(*bpe, text);
    CHECK(bpe->decode(by_bpe, true) == text);
    const Ids by_spm = parsed(*spm, text);
    CHECK(spm->decode(by_spm, true) == text);
  }
  CHECK(plain(*bpe, std::string(kCount, 'a')).size() == kCount / 32);
}

TEST_CASE("the stream decoder holds back a character until it is whole") {
  const auto tokenizer = made(byte_vocabulary({}, {"<|end|>"}));
  StreamDecoder decoder(tokenizer, true);
  CHECK(decoder.push('a') == "a");
  CHECK(decoder.push(0xF0) == "");  // U+1F680 byte by byte
  CHECK(decoder.push(0x9F) == "");
  CHECK(decoder.push(256) == "");  // a control token between the bytes adds nothing
  CHECK(decoder.push(0x9A) == "");
  CHECK(decoder.push(0x80) == "\xF0\x9F\x9A\x80");
  CHECK(decoder.push(0xC3) == "");
  CHECK(decoder.push('x') ==
        "\xEF\xBF\xBDx");  // what cannot become a character any more is not held back
  CHECK(decoder.push(0xFF) == "\xEF\xBF\xBD");
  CHECK(decoder.push(0xE4) == "");
  CHECK(decoder.push(0xBD) == "");
  CHECK(decoder.flush() == "\xEF\xBF\xBD");
  CHECK(decoder.flush() == "");
}

TEST_CASE("the stream decoder drops SPM's first space only at the start") {
  const auto tokenizer = made(spm_vocabulary({"▁a", "▁", "a"}));
  StreamDecoder start(tokenizer, true);
  CHECK(start.push(1) == "");
  CHECK(start.push(259) == "a");
  CHECK(start.push(259) == " a");
  StreamDecoder later(tokenizer, false);
  CHECK(later.push(259) == " a");
}
