// updraft bench: how fast one model file runs here, and how far that is from what the machine can.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "common/http/json_text.h"
#include "tools/bench/engine_bench.h"
#include "tools/bench/random_model.h"
#include "tools/command.h"
#include "tools/daemon.h"
#include "tools/model_flags.h"

namespace updraft {
namespace {

struct BenchFlags {
  BenchConfig bench;
  bool json = false;
  bool smoke = false;
};

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

void append_member(std::string& out, const char* key, const std::string& json) {
  out += out.size() > 1 ? ", " : "";
  out += json_string(key) + ": " + json;
}

void print_json(const BenchSubject& subject, const BenchLine& line) {
  std::string out = "{";
  append_member(out, "test", json_string(line.test));
  append_member(out, "model", json_string(subject.model));
  append_member(out, "quantization", json_string(subject.quantization));
  append_member(out, "file_bytes", std::to_string(subject.file_bytes));
  append_member(out, "device", json_string(subject.device));
  append_member(out, "threads", std::to_string(subject.threads));
  append_member(out, "kv_type", json_string(subject.kv_type));
  append_member(out, "value", number(line.value));
  append_member(out, "unit", json_string(line.unit));
  std::string samples;
  for (const double sample : line.samples)
    samples += (samples.empty() ? "" : ", ") + number(sample);
  append_member(out, "samples", "[" + samples + "]");
  append_member(out, "share", line.share ? number(*line.share) : "null");
  append_member(out, "limit", json_string(line.limit));
  append_member(out, "peak", number(line.peak));
  append_member(out, "peak_unit", json_string(line.peak_unit));
  append_member(out, "hash", json_string(line.hash));
  std::printf("%s}\n", out.c_str());
  std::fflush(stdout);
}

void print_text(const BenchLine& line) {
  char share[64] = "";
  if (line.share) {
    std::snprintf(share, sizeof share, "%5.1f %% of %s (%.4g %s)", 100.0 * *line.share,
                  line.limit.c_str(), line.peak, line.peak_unit.c_str());
  }
  char value[40];
  std::snprintf(value, sizeof value, "%.*f", line.value < 10 ? 3 : 1, line.value);
  std::printf("%-14s %10s %-9s  %-38s %s\n", line.test.c_str(), value, line.unit.c_str(), share,
              line.hash.c_str());
  std::fflush(stdout);
}

// A model of a few thousand weights, gone with the object.
class SmokeModel {
 public:
  static Result<std::unique_ptr<SmokeModel>> make() {
    auto model = std::make_unique<SmokeModel>();
    model->path_ = (std::filesystem::temp_directory_path() /
                    ("updraft-smoke-" + std::to_string(getpid()) + ".gguf"))
                       .string();
    RandomModelConfig config;
    Hyperparameters& h = config.hyperparameters;
    h.architecture = Architecture::kQwen3;
    h.layer_count = 2;
    h.hidden_dim = 256;
    h.ff_dim = 512;
    h.head_count = 4;
    h.kv_head_count = 2;
    h.head_dim = h.rope_dims = 64;
    h.vocab_count = 1024;
    h.context_tokens = 1024;
    h.norm_eps = 1e-6F;
    h.tied_embeddings = true;
    config.name = "smoke";
    config.file_type = FileType::kQ4_K_M;
    if (auto written = write_random_model(config, model->path_, {}); !written)
      return written.error();
    return model;
  }
  ~SmokeModel() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

int bench(BenchFlags flags) {
  std::unique_ptr<SmokeModel> smoke;
  if (flags.smoke) {
    flags.bench.prompt_tokens = {32};
    flags.bench.decode_tokens = 8;
    flags.bench.depths = {64};
    flags.bench.parallel = 2;
    flags.bench.arriving_tokens = 100;
    flags.bench.repetitions = 1;
    flags.bench.probe_ms = 2;
    flags.bench.cold_load = true;
    if (flags.bench.model.model_path.empty()) {
      auto made = SmokeModel::make();
      if (!made) return complain(made.message());
      smoke = std::move(*made);
      flags.bench.model.model_path = smoke->path();
    }
  }
  if (flags.bench.model.model_path.empty())
    return complain("bench: which model? give -m file.gguf");
  BenchSubject subject;
  BenchOutput output;
  output.subject = [&](const BenchSubject& found) {
    subject = found;
    if (flags.json) return;
    std::printf("%s, %.0fM parameters, %s, %.0f MB, KV %s, %s\n\n", subject.model.c_str(),
                static_cast<double>(subject.parameter_count) / 1e6, subject.quantization.c_str(),
                static_cast<double>(subject.file_bytes) / 1e6, subject.kv_type.c_str(),
                subject.device.c_str());
    std::printf("%-14s %20s  %-38s %s\n", "test", "median of runs", "share of the measured peak",
                "output");
  };
  output.line = [&](const BenchLine& line) {
    if (flags.json) return print_json(subject, line);
    print_text(line);
  };
  output.skipped = [](const std::string& why) {
    std::fprintf(stderr, "updraft: skipped %s\n", why.c_str());
  };
  const auto done = run_engine_bench(flags.bench, output, terminal_progress());
  return done ? 0 : complain("bench: " + done.message());
}

}  // namespace

void add_bench(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<BenchFlags>();
  BenchConfig& bench_config = flags->bench;
  LocalModelConfig& model = bench_config.model;
  // Random weights soon repeat themselves and a prompt is measured more than once: with these on,
  // the figures would speak of the text, not of the machine.
  model.speculation = false;
  model.prefix_cache = false;
  CLI::App* command = app.add_subcommand(
      "bench", "measure how fast a model file runs on this machine, beside what the machine can");
  command->footer(
      "Lines: ppN is prefill, tokens/s of a prompt of N tokens up to its first answer token; tgN "
      "is decode, tokens/s\n"
      "of N answer tokens, @dM after a context of M tokens, xP in all of P sequences at once; "
      "stallNxP is the longest\n"
      "pause of P running sequences when a prompt of N tokens arrives; load is opening the file up "
      "to a first token;\n"
      "memory the most that was resident then; barrier one fork and join of all threads.\n"
      "The share compares each time with what int8 or f32 arithmetic or reading memory would need "
      "at the peak rate\n"
      "measured between the runs. Equal hashes mean equal output ids.");
  command->add_option("-m,--model", model.model_path,
                      "the .gguf file, .safetensors file or folder");
  command
      ->add_option("-p,--prompt", bench_config.prompt_tokens,
                   "prompt lengths, comma separated; 0: none")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("-n,--decode", bench_config.decode_tokens, "answer tokens; 0: no decode")
      ->check(CLI::Range(0, 1 << 20));
  command
      ->add_option("-d,--depth", bench_config.depths,
                   "also decode after contexts of these lengths, comma separated; 0: none")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 20));
  command->add_option("--parallel", bench_config.parallel, "sequences at once; 0: no such lines")
      ->check(CLI::Range(0, 255));
  command
      ->add_option("--arriving", bench_config.arriving_tokens,
                   "length of the prompt that arrives while --parallel sequences run")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("-r,--repetitions", bench_config.repetitions, "runs of each line")
      ->check(CLI::Range(1, 1000));
  add_processor_flags(*command, model);
  command->add_flag("--speculation", model.speculation,
                    "guess tokens that repeat the context (off: random weights repeat themselves)");
  command->add_option("--step-tokens", model.step_tokens_max, "rows of one step at most")
      ->check(CLI::Range(1, 65536));
  command->add_flag("--cold", bench_config.cold_load,
                    "also load with the file dropped from the page cache");
  command->add_flag("--json", flags->json, "one JSON object a line");
  command->add_flag("--smoke", flags->smoke,
                    "seconds instead of minutes: checks that every line works; makes a model "
                    "without -m");
  add_bench_ipc(*command, exit_status);
  add_bench_router(*command, exit_status);
  add_bench_placement(*command, exit_status);
  command->callback([flags, command, &exit_status] {
    if (command->get_subcommands().empty()) exit_status = bench(*flags);
  });
}

}  // namespace updraft
