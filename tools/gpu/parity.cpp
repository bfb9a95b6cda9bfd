#include "tools/gpu/parity.h"

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

#include "common/engine/engine.h"
#include "kernels/cpu/cpu_backend.h"
#include "tools/gpu/stepper.h"

namespace updraft::gpu {
namespace {

using Print = std::function<void(const Line&)>;
constexpr double kCpuError = 1e-4;
constexpr double kDeviceError = 2e-2;
constexpr double kInt8KvError = 4e-2;
// Twice what the grids of rows in 8 bits lose on these models; a mistake in layouts or scales gives
// errors as large as the logits.
constexpr double kInt8Error = 0.12;
constexpr double kFloat8Error = 0.36;

struct Expected {
  std::vector<int32_t> tokens;
  int32_t vocab = 0;
  std::vector<float> logits;  // [tokens, vocab]
};

// The layout stands in compare_transformers.py.
Result<Expected> read_expected(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  int32_t counts[2] = {};
  in.read(reinterpret_cast<char*>(counts), sizeof counts);
  if (!in || counts[0] <= 0 || counts[1] <= 0 || counts[0] > 1 << 20 || counts[1] > 1 << 20)
    return fail(path.string() + ": no expected logits");
  Expected out;
  out.vocab = counts[1];
  out.tokens.resize(static_cast<size_t>(counts[0]));
  out.logits.resize(out.tokens.size() * static_cast<size_t>(counts[1]));
  in.read(reinterpret_cast<char*>(out.tokens.data()),
          static_cast<std::streamsize>(out.tokens.size() * sizeof(int32_t)));
  in.read(reinterpret_cast<char*>(out.logits.data()),
          static_cast<std::streamsize>(out.logits.size() * sizeof(float)));
  if (!in) return fail(path.string() + ": shorter than it says");
  return out;
}

struct Difference {
  double absolute = 0.0;  // infinity when a value is NaN
  double relative = 0.0;  // to the largest expected value
  int wrong_tops = 0;  // rows whose likeliest token differs although the margin exceeds the error
};

Difference compare(const std::vector<float>& got, const Expected& expected) {
  Difference out;
  if (got.size() != expected.logits.size()) {
    out.absolute = out.relative = INFINITY;
    return out;
  }
  double largest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d =
        std::abs(static_cast<double>(got[i]) - static_cast<double>(expected.logits[i]));
    out.absolute = std::max(out.absolute, std::isnan(d) ? INFINITY : d);
    largest = std::max(largest, std::abs(static_cast<double>(expected.logits[i])));
  }
  out.relative = out.absolute / largest;
  const auto vocab = static_cast<size_t>(expected.vocab);
  for (size_t row = 0; row < expected.tokens.size(); ++row) {
    const auto want = expected.logits.begin() + static_cast<ptrdiff_t>(row * vocab);
    const auto have = got.begin() + static_cast<ptrdiff_t>(row * vocab);
    const auto top = std::max_element(want, want + static_cast<ptrdiff_t>(vocab)) - want;
    const auto got_top = std::max_element(have, have + static_cast<ptrdiff_t>(vocab)) - have;
    if (top != got_top && static_cast<double>(want[top] - want[got_top]) > 2 * out.absolute)
      ++out.wrong_tops;
  }
  return out;
}

class Parity {
 public:
  Parity(const std::string& name, std::shared_ptr<const Model> model, const Expected& expected,
         const OpenBackend& open,
         const std::vector<std::pair<std::string, OpenBackend>>& activations, const Print& print)
      : name_(name),
        model_(std::move(model)),
        expected_(expected),
        open_(open),
        activations_(activations),
        print_(print) {}

  void run() {
    exact_cpu();
    constexpr auto kPrompt = Stepper::As::kPrompt;
    constexpr auto kAnswer = Stepper::As::kAnswer;
    judge("device, a prompt", logits(open_, DType::kBF16, all(), kPrompt), kDeviceError);
    judge("device, an answer", logits(open_, DType::kBF16, all(), kAnswer), kDeviceError);
    judge("device, int8 KV, a prompt", logits(open_, DType::kQ8_0, all(), kPrompt), kInt8KvError);
    judge("device, int8 KV, an answer", logits(open_, DType::kQ8_0, all(), kAnswer), kInt8KvError);
    for (const auto& [format, open] : activations_) {
      for (const int32_t chunk : {all(), 16}) {  // through the library, and through our own kernel
        judge(
            "device, " + format + " weights and activations, in chunks of " + std::to_string(chunk),
            logits(open, DType::kBF16, chunk, kPrompt),
            format == "int8" ? kInt8Error : kFloat8Error);
      }
    }
    // Steps of a few tokens take other products than steps of many (kernels/cuda/gemm.h): what must
    // agree to the bit are steps of one kind.
    for (const auto as : {kPrompt, kAnswer}) {
      const auto expected = logits(open_, DType::kBF16, 16, as);
      for (const int32_t chunk : {33, 7, 1}) {
        same(std::string(as == kPrompt ? "a prompt" : "an answer") + " in chunks of " +
                 std::to_string(chunk) + " = in chunks of 16",
             logits(open_, DType::kBF16, chunk, as), expected);
      }
    }
    batches();
  }

 private:
  int32_t all() const { return static_cast<int32_t>(expected_.tokens.size()); }

  Result<std::vector<float>> logits(const OpenBackend& open, DType kv_type, int32_t chunk,
                                    Stepper::As as) {
    auto backend = open();
    if (!backend) return backend.error();
    auto stepper =
        Stepper::open(model_, std::move(*backend), {all(), all(), 16, all() + 16, kv_type});
    if (!stepper) return stepper.error();
    return (*stepper)->logits(expected_.tokens, chunk, as);
  }

  void exact_cpu() {
    const OpenBackend cpu = [] {
      CpuConfig config;
      config.exact = true;
      return open_cpu_backend(config);
    };
    const auto got = logits(cpu, DType::kF32, all(), Stepper::As::kPrompt);
    Line line = begin("cpu, f32");
    if (!got) return fail_line(line, got.message());
    const Difference d = compare(*got, expected_);
    line.value = d.absolute;
    line.unit = "largest error";
    line.target = kCpuError;
    line.lower_is_better = true;
    print_(line);
  }

  void judge(const std::string& what, const Result<std::vector<float>>& got, double limit) {
    Line line = begin(what);
    if (!got) return fail_line(line, got.message());
    const Difference d = compare(*got, expected_);
    line.value = d.relative;
    line.unit = "error / largest logit";
    line.passed = d.relative < limit && d.wrong_tops == 0;
    line.note = "absolute " + std::to_string(d.absolute) + ", wrong likeliest tokens " +
                std::to_string(d.wrong_tops) + ", limit " + std::to_string(limit);
    print_(line);
  }

  void same(const std::string& what, const Result<std::vector<float>>& a,
            const Result<std::vector<float>>& b) {
    Line line = begin(what);
    if (!a || !b) return fail_line(line, a ? b.message() : a.message());
    line.unit = "values that differ";
    for (size_t i = 0; i < a->size(); ++i) line.value += (*a)[i] != (*b)[i] ? 1 : 0;
    line.passed = a->size() == b->size() && line.value == 0.0;
    print_(line);
  }

  // Through the whole engine, greedy: alone, then eight at once, then behind what the prefix cache
  // holds by now.
  void batches() {
    Line line = begin("eight at once = each alone = behind a cached prefix");
    line.unit = "answers that differ";
    auto engine = open_engine();
    if (!engine) return fail_line(line, engine.message());
    constexpr int kSequences = 8;
    std::vector<std::vector<int32_t>> alone;
    for (int i = 0; i < kSequences; ++i) {
      auto fresh = open_engine();
      if (!fresh) return fail_line(line, fresh.message());
      alone.push_back(generate(**fresh, {i})[0]);
    }
    std::vector<int> every(kSequences);
    for (int i = 0; i < kSequences; ++i) every[static_cast<size_t>(i)] = i;
    for (int round = 0; round < 2; ++round) {
      const auto together = generate(**engine, every);
      for (size_t i = 0; i < alone.size(); ++i) line.value += together[i] != alone[i] ? 1 : 0;
    }
    const int64_t hits = (*engine)->load().prefix_cache.hit_tokens;
    line.passed = line.value == 0.0 && hits > 0;
    line.note = std::to_string(hits) + " tokens found in the prefix cache";
    print_(line);
  }

  Result<std::unique_ptr<Engine>> open_engine() {
    auto backend = open_();
    if (!backend) return backend.error();
    EngineConfig config;
    config.slots = 8;
    config.page_tokens = 16;
    config.kv_type = DType::kBF16;
    config.context_tokens = std::min(128, model_->hyperparameters().context_tokens);
    config.step_tokens_max = 64;  // one kind of product for prompts and answers
    return Engine::open(config, model_, std::move(*backend), {});
  }

  class Collector final : public SequenceSink {
   public:
    void on_start() override {}
    bool on_token(const SampledToken& token) override {
      tokens.push_back(token.id);
      return true;
    }
    void on_end(SequenceEnd, int32_t) override {
      const std::lock_guard lock(mutex_);
      done_ = true;
      changed_.notify_one();
    }
    void wait() {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return done_; });
    }
    std::vector<int32_t> tokens;

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool done_ = false;
  };

  // Sequence i: the first 20 + i of the expected tokens as the prompt, 24 tokens of answer.
  std::vector<std::vector<int32_t>> generate(Engine& engine, const std::vector<int>& which) {
    std::vector<std::shared_ptr<Collector>> sinks;
    for (const int i : which) {
      SequenceRequest request;
      request.id = ++requests_;
      request.prompt.assign(expected_.tokens.begin(), expected_.tokens.begin() + 20 + i);
      request.sampling.temperature = 0.0F;
      request.sampling.max_tokens = 24;
      sinks.push_back(std::make_shared<Collector>());
      UPDRAFT_CHECK(engine.submit(std::move(request), sinks.back()));
    }
    std::vector<std::vector<int32_t>> out;
    for (const auto& sink : sinks) {
      sink->wait();
      out.push_back(sink->tokens);
    }
    return out;
  }

  Line begin(const std::string& what) const {
    Line line;
    line.group = "parity";
    line.name = name_ + ": " + what;
    return line;
  }
  void fail_line(Line line, const std::string& why) const {
    line.passed = false;
    line.note = why;
    print_(line);
  }

  const std::string name_;
  const std::shared_ptr<const Model> model_;
  const Expected& expected_;
  const OpenBackend& open_;
  const std::vector<std::pair<std::string, OpenBackend>>& activations_;
  const Print& print_;
  uint64_t requests_ = 0;
};

}  // namespace

Result<void> run_parity(const std::string& root, const OpenBackend& open,
                        const std::vector<std::pair<std::string, OpenBackend>>& activations,
                        const Print& print) {
  std::error_code error;
  std::map<std::string, std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(root, error)) {
    if (entry.is_directory()) folders[entry.path().filename().string()] = entry.path();
  }
  if (error) return fail(root + ": " + error.message());
  if (folders.empty()) return fail(root + ": no folder with a model");
  for (const auto& [name, folder] : folders) {
    auto model = open_model(folder.string());
    const auto expected = read_expected(folder / "expected.bin");
    if (!model || !expected) {  // the others still answer
      Line line;
      line.group = "parity";
      line.name = name;
      line.passed = false;
      line.note = model ? expected.message() : model.message();
      print(line);
      continue;
    }
    Parity(name, std::move(*model), *expected, open, activations, print).run();
  }
  return {};
}

}  // namespace updraft::gpu
