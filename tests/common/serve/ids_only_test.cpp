// A model file without a tokenizer, for prompts of token ids. The expected token is the one with
// the largest logit that Hugging Face transformers computes
// (tests/common/engine/golden/llama/expected.bin).
#include <doctest/doctest.h>

#include <algorithm>
#include <fstream>

#include "common/serve/local_model.h"
#include "tests/common/serve/events.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

const std::string kFolder = "tests/common/engine/golden/llama";

LocalModelConfig golden_config() {
  LocalModelConfig config;
  config.model_path = repo_file(kFolder);
  config.served_name = "golden";
  config.slots = 1;
  config.threads = 1;
  config.kv_type = "f32";
  config.exact = true;
  return config;
}

struct Golden {
  std::vector<int32_t> prompt;
  int32_t next = 0;
};

Golden read_golden() {
  std::ifstream in(repo_file(kFolder + "/expected.bin"), std::ios::binary);
  int32_t counts[2] = {};  // tokens, vocabulary; then the tokens, then a row of logits for each
  in.read(reinterpret_cast<char*>(counts), sizeof counts);
  REQUIRE(in.good());
  Golden golden;
  golden.prompt.resize(static_cast<size_t>(counts[0]));
  in.read(reinterpret_cast<char*>(golden.prompt.data()), 4L * counts[0]);
  in.seekg(4L * counts[1] * (counts[0] - 1), std::ios::cur);
  std::vector<float> logits(static_cast<size_t>(counts[1]));
  in.read(reinterpret_cast<char*>(logits.data()), 4L * counts[1]);
  REQUIRE(in.good());
  golden.next =
      static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  return golden;
}

Reply ask(LocalModel& model, const Request& request) {
  EventLog log;
  model.submit(request, log.sink());
  log.wait_end();
  return assemble(log.events(), 1);
}

}  // namespace

TEST_CASE("a folder without tokenizer.json answers token ids with token ids") {
  LocalModelConfig config = golden_config();
  config.ids_suffice = true;
  auto model = LocalModel::open(config, {});
  REQUIRE_MESSAGE(model.ok(), model.message());
  CHECK_FALSE((*model)->has_tokenizer());
  const Golden golden = read_golden();
  Request request;
  request.id = new_request_id();
  request.kind = Request::Kind::kCompletion;
  request.prompt_ids = {golden.prompt};
  request.sampling.temperature = 0.0F;
  request.sampling.max_tokens = 1;
  request.sampling.ignore_eos = true;
  request.sampling.logprobs = true;
  const Reply reply = ask(**model, request);
  REQUIRE(reply.finished.has_value());
  CHECK(reply.choices[0].ids == std::vector<int32_t>{golden.next});
  CHECK(reply.choices[0].text.empty());

  Request text;
  text.id = new_request_id();
  text.kind = Request::Kind::kCompletion;
  text.prompts = {"Once"};
  const Reply refused = ask(**model, text);
  REQUIRE(refused.error.has_value());
  CHECK(refused.error->code == ErrorCode::kUnsupported);
  CHECK(refused.error->message ==
        "golden has no tokenizer: a prompt can only be token ids or embeddings");
}

TEST_CASE("whoever needs text is told what is missing") {
  const auto model = LocalModel::open(golden_config(), {});
  REQUIRE(!model.ok());
  CHECK(model.message().find("golden/llama") != std::string::npos);
  CHECK(model.message().find("tokenizer.json") != std::string::npos);
  CHECK(model.message().find("--prompt-ids") != std::string::npos);
}
