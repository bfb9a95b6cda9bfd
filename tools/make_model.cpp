// updraft make-model: a model file of a given shape with random weights, to measure with.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "common/base/clock.h"
#include "common/model/hyperparameters.h"
#include "tools/bench/random_model.h"
#include "tools/command.h"
#include "tools/convert/file_type.h"
#include "tools/daemon.h"

namespace updraft {
namespace {

struct MakeFlags {
  std::string shape = "qwen2.5-0.5b";
  std::string type = "q4_0";
  std::string output;
  uint64_t seed = 1;
  int threads = 0;
  // Over the named shape; 0 or empty: as it is.
  std::string architecture;
  int32_t layers = 0, hidden = 0, ff = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  int32_t context = 0;
  bool untied = false;
};

std::string shape_names() {
  std::string names;
  for (const NamedShape& shape : named_shapes())
    names += (names.empty() ? "" : ", ") + std::string(shape.name);
  return names;
}

Result<Hyperparameters> hyperparameters_of(const MakeFlags& flags) {
  std::optional<Hyperparameters> found;
  for (const NamedShape& shape : named_shapes()) {
    if (flags.shape == shape.name) found = shape.hyperparameters;
  }
  if (!found) return fail("--shape " + flags.shape + ": known are " + shape_names());
  Hyperparameters h = *found;
  if (!flags.architecture.empty()) {
    const auto architecture = architecture_from_name(flags.architecture);
    if (!architecture) return fail(unsupported_architecture(flags.architecture));
    h.architecture = *architecture;
    if (h.architecture != found->architecture) h.rope_scaling = {};
  }
  const auto replace = [](int32_t& value, int32_t flag) {
    if (flag > 0) value = flag;
  };
  replace(h.layer_count, flags.layers);
  replace(h.hidden_dim, flags.hidden);
  replace(h.ff_dim, flags.ff);
  replace(h.head_count, flags.heads);
  replace(h.kv_head_count, flags.kv_heads);
  replace(h.vocab_count, flags.vocab);
  replace(h.context_tokens, flags.context);
  if (flags.head_dim > 0) {
    h.head_dim = flags.head_dim;
  } else if (flags.hidden > 0 || flags.heads > 0) {
    h.head_dim = h.hidden_dim / h.head_count;
  }
  h.rope_dims = h.head_dim;
  if (flags.untied) h.tied_embeddings = false;
  return h;
}

int make(const MakeFlags& flags) {
  const auto type = file_type_from_name(flags.type);
  if (!type) return complain("--type " + flags.type + ": known are " + file_type_names());
  const auto h = hyperparameters_of(flags);
  if (!h) return complain(h.message());
  RandomModelConfig config;
  config.hyperparameters = *h;
  config.name = flags.shape + " (random weights)";
  config.file_type = *type;
  config.seed = flags.seed;
  config.thread_count = flags.threads;
  const int64_t start_ns = monotonic_ns();
  const auto written = write_random_model(config, flags.output, terminal_progress());
  if (!written) return complain(written.message());
  const double seconds = static_cast<double>(monotonic_ns() - start_ns) / kNsPerSecond;
  std::fprintf(stderr, "%s: %s %s in %.1f s\n", flags.output.c_str(), flags.shape.c_str(),
               flags.type.c_str(), seconds);
  return 0;
}

}  // namespace

void add_make_model(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<MakeFlags>();
  CLI::App* command = app.add_subcommand(
      "make-model", "write a model file of a given shape with random weights, to measure with");
  command->add_option("--shape", flags->shape, "one of " + shape_names());
  command->add_option("--type", flags->type, "one of " + file_type_names());
  command->add_option("-o,--output", flags->output, "the .gguf file to write")->required();
  command->add_option("--seed", flags->seed, "same seed, same file");
  command->add_option("-t,--threads", flags->threads, "threads (default: one per core)")
      ->check(CLI::Range(0, 1024));
  const std::string group = "Any other shape (each replaces the named shape's value)";
  command->add_option("--arch", flags->architecture, "llama, qwen2, qwen3, glm4 or chatglm")
      ->group(group);
  const std::tuple<const char*, int32_t*, const char*, int> counts[] = {
      {"--layers", &flags->layers, "layers", 4096},
      {"--hidden", &flags->hidden, "width of the residual stream", 1 << 20},
      {"--ff", &flags->ff, "width of the feed-forward block", 1 << 22},
      {"--heads", &flags->heads, "query heads", 1 << 16},
      {"--kv-heads", &flags->kv_heads, "key and value heads", 1 << 16},
      {"--head-dim", &flags->head_dim, "width of a head (default: hidden / heads)", 1 << 13},
      {"--vocab", &flags->vocab, "tokens", 1 << 24},
      {"--context", &flags->context, "trained context", 1 << 30}};
  for (const auto& [name, value, help, max] : counts)
    command->add_option(name, *value, help)->group(group)->check(CLI::Range(0, max));
  command->add_flag("--untied", flags->untied, "an output head of its own, not the embedding's")
      ->group(group);
  command->callback([flags, &exit_status] { exit_status = make(*flags); });
}

}  // namespace updraft
