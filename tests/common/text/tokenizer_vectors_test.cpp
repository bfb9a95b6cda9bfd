// llama.cpp's own vectors, and what must hold for every text on the real vocabularies.
#include <doctest/doctest.h>

#include "common/text/tokenizer.h"
#include "tests/common/text/vocabulary.h"

using namespace updraft;
using updraft::testing::shared_tokenizer;
using updraft::testing::shared_vocabulary;
using updraft::testing::vector_cases;

namespace {

void check_vectors(const char* name) {
  const auto tokenizer = shared_tokenizer(name);
  const auto cases = vector_cases(name);
  if (!tokenizer || !cases) return;
  CHECK(cases->size() == 46);
  for (const auto& [text, ids] : *cases) {
    CAPTURE(text);
    CHECK(tokenizer->encode_all(text, SpecialText::kPlain, false) == ids);
    CHECK(tokenizer->decode(ids, true) == text);
  }
}

}  // namespace

TEST_CASE("gpt-2: all 46 vectors, there and back") { check_vectors("gpt-2"); }
TEST_CASE("phi-3 (SPM): all 46 vectors, there and back") { check_vectors("phi-3"); }
TEST_CASE("qwen2: all 46 vectors, there and back") { check_vectors("qwen2"); }
