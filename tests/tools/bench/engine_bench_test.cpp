// The benchmark itself: which lines it gives, that they are what they say, and what it does with a
// model that is too small for a line.
#include "tools/bench/engine_bench.h"

#include <doctest/doctest.h>

#include <map>

#include "tests/support/shared_data.h"
#include "tools/bench/random_model.h"

using namespace updraft;
using updraft::testing::TempDir;

namespace {

struct Ran {
  std::map<std::string, BenchLine> lines;
  std::vector<std::string> skipped;
  BenchSubject subject;
};

std::string small_model(const TempDir& dir) {
  RandomModelConfig config;
  Hyperparameters& h = config.hyperparameters;
  h.architecture = Architecture::kLlama;
  h.layer_count = 2;
  h.hidden_dim = 128;
  h.ff_dim = 256;
  h.head_count = 4;
  h.kv_head_count = 2;
  h.head_dim = h.rope_dims = 32;
  h.vocab_count = 600;
  h.context_tokens = 600;
  h.norm_eps = 1e-5F;
  config.name = "small";
  REQUIRE(write_random_model(config, dir.file("m.gguf"), {}).ok());
  return dir.file("m.gguf");
}

BenchConfig quick(const std::string& path) {
  BenchConfig config;
  config.model.model_path = path;
  config.model.threads = 2;
  config.prompt_tokens = {40, 90};
  config.decode_tokens = 12;
  config.depths = {0, 70};
  config.parallel = 3;
  config.arriving_tokens = 80;
  config.repetitions = 2;
  config.probe_ms = 1;
  return config;
}

Ran run(const BenchConfig& config) {
  Ran out;
  BenchOutput output;
  output.subject = [&](const BenchSubject& subject) { out.subject = subject; };
  output.line = [&](const BenchLine& line) { out.lines[line.test] = line; };
  output.skipped = [&](const std::string& why) { out.skipped.push_back(why); };
  const auto done = run_engine_bench(config, output, {});
  REQUIRE_MESSAGE(done.ok(), done.message());
  return out;
}

}  // namespace

TEST_CASE("every line is there with a value, its samples, a share and a hash of its output") {
  const TempDir dir;
  const Ran ran = run(quick(small_model(dir)));
  CHECK(ran.subject.model == "small");
  CHECK(ran.subject.threads == 2);
  for (const char* test :
       {"load", "memory", "pp40", "pp90", "tg12", "tg12@d70", "tg12x3", "stall80x3", "barrier"}) {
    CAPTURE(std::string(test));
    const auto found = ran.lines.find(test);
    REQUIRE(found != ran.lines.end());
    const BenchLine& line = found->second;
    CHECK(line.value > 0);
    CHECK_FALSE(line.samples.empty());
    REQUIRE(line.share.has_value());
    CHECK(*line.share > 0);
    const std::string name = test;
    const bool generates =
        name.starts_with("pp") || name.starts_with("tg") || name.starts_with("stall");
    CHECK(line.hash.size() == (generates ? 8 : 0));
    if (generates) CHECK(line.samples.size() == 2);
    if (generates) CHECK(*line.share < 1.2);
  }
  CHECK(ran.lines.size() == 9);
  CHECK(ran.skipped.empty());
}

TEST_CASE("the same file gives the same hashes again, another file others") {
  const TempDir dir;
  BenchConfig config = quick(small_model(dir));
  config.parallel = 0;
  config.repetitions = 1;
  const Ran first = run(config);
  const Ran second = run(config);
  for (const char* test : {"pp90", "tg12", "tg12@d70"})
    CHECK(first.lines.at(test).hash == second.lines.at(test).hash);
  CHECK(first.lines.at("tg12").hash != first.lines.at("tg12@d70").hash);
}

TEST_CASE("lines beyond the model's context are skipped and named") {
  const TempDir dir;
  BenchConfig config = quick(small_model(dir));
  config.prompt_tokens = {40, 5000};
  config.depths = {4000};
  config.arriving_tokens = 2000;
  config.repetitions = 1;
  const Ran ran = run(config);
  CHECK(ran.lines.count("pp40") == 1);
  REQUIRE(ran.skipped.size() == 3);
  CHECK(ran.skipped[0] == "pp5000: needs 5001 tokens of context, the model has 600");
  CHECK(ran.skipped[1].starts_with("tg12@d4000"));
  CHECK(ran.skipped[2].starts_with("stall2000x3"));
}

TEST_CASE("a model that is not there is an error with its name") {
  BenchConfig config = quick("/nowhere/m.gguf");
  const auto done = run_engine_bench(config, {}, {});
  REQUIRE_FALSE(done.ok());
  CHECK(done.message().find("/nowhere/m.gguf") != std::string::npos);
}
