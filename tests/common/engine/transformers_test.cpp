// The whole path from a safetensors folder to logits against Hugging Face transformers: random
// models of each architecture with the logits that transformers computes in f32 (made by
// tools/numerics/compare_transformers.py).
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "common/engine/forward.h"
#include "common/model/model.h"
#include "tests/common/engine/backends.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

struct Expected {
  std::vector<int32_t> tokens;
  int32_t vocab_count = 0;
  std::vector<float> logits;  // [tokens, vocab]
};

Expected read_expected(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  int32_t counts[2] = {};
  in.read(reinterpret_cast<char*>(counts), sizeof counts);
  REQUIRE_MESSAGE(in.good(), path);
  Expected out;
  out.vocab_count = counts[1];
  out.tokens.resize(static_cast<size_t>(counts[0]));
  out.logits.resize(out.tokens.size() * static_cast<size_t>(counts[1]));
  in.read(reinterpret_cast<char*>(out.tokens.data()),
          static_cast<std::streamsize>(out.tokens.size() * sizeof(int32_t)));
  in.read(reinterpret_cast<char*>(out.logits.data()),
          static_cast<std::streamsize>(out.logits.size() * sizeof(float)));
  REQUIRE_MESSAGE(in.good(), path);
  return out;
}

// All logits of `tokens`, computed `chunk` tokens at a time.
std::vector<float> logits_of(const Model& model, Backend& backend,
                             const std::vector<int32_t>& tokens, int32_t chunk) {
  const auto count = static_cast<int32_t>(tokens.size());
  const auto forward = Forward::create(model, backend, {count, count}, {});
  REQUIRE_MESSAGE(forward.ok(), forward.message());
  KvShape shape = Forward::kv_shape(model.hyperparameters());
  shape.page_tokens = 16;
  shape.page_count = count / 16 + 1;
  shape.type = DType::kF32;
  REQUIRE(backend.make_kv_pool(shape).ok());
  std::vector<int32_t> pages(static_cast<size_t>(shape.page_count));
  std::iota(pages.rbegin(), pages.rend(), 0);
  std::vector<float> out;
  for (int32_t at = 0; at < count; at += chunk) {
    const int32_t rows = std::min(chunk, count - at);
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    std::vector<int32_t> logit_rows(static_cast<size_t>(rows));
    std::iota(positions.begin(), positions.end(), at);
    std::iota(logit_rows.begin(), logit_rows.end(), 0);
    const SequenceSlice slice{0, rows, at, pages};
    const auto part = std::span(tokens).subspan(static_cast<size_t>(at), static_cast<size_t>(rows));
    const auto logits = forward->run(backend, {part, positions, {&slice, 1}, logit_rows});
    out.insert(out.end(), logits.begin(), logits.end());
  }
  return out;
}

}  // namespace

TEST_CASE("the logits of every architecture are those of transformers") {
  const char* chosen = std::getenv("UPDRAFT_GOLDEN_DIR");
  const std::string root = chosen != nullptr ? chosen : repo_file("tests/common/engine/golden");
  int folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (!entry.is_directory()) continue;
    ++folders;
    const std::string folder = entry.path().string();
    CAPTURE(folder);
    const auto model = open_model(folder);
    REQUIRE_MESSAGE(model.ok(), model.message());
    const Expected expected = read_expected(entry.path() / "expected.bin");
    REQUIRE(expected.vocab_count == (*model)->hyperparameters().vocab_count);
    for (const std::string& name : backend_names()) {
      for (const int32_t chunk : {static_cast<int32_t>(expected.tokens.size()), 7}) {
        CAPTURE(name);
        CAPTURE(chunk);
        const auto backend = open_backend(name);
        const auto logits = logits_of(**model, *backend, expected.tokens, chunk);
        REQUIRE(logits.size() == expected.logits.size());
        float worst = 0.0F;
        for (size_t i = 0; i < logits.size(); ++i) {
          // Written so that NaN fails.
          if (!(std::abs(logits[i] - expected.logits[i]) <= worst))
            worst = std::abs(logits[i] - expected.logits[i]);
        }
        if (chosen != nullptr) {
          std::printf("%-24s %-12s chunk %2d: %.2e\n", entry.path().filename().c_str(),
                      name.c_str(), chunk, static_cast<double>(worst));
        }
        CHECK(worst < 1e-4F);
      }
    }
  }
  CHECK(folders >= 13);
}
