#include "tools/gpu/model_bench.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>
#include <vector>

#include "common/base/clock.h"
#include "common/base/median.h"
#include "common/engine/engine.h"
#include "tools/gpu/random_weights.h"
#include "tools/gpu/stepper.h"

namespace updraft::gpu {
namespace {

using Print = std::function<void(const Line&)>;

// Bytes and operations that a step cannot do without.
struct StepCost {
  double bytes = 0.0;
  double operations = 0.0;

  double seconds(const Ceilings& ceilings) const {
    const double by_memory = bytes / ceilings.copy_bytes_per_s;
    return ceilings.bf16_per_s > 0.0 ? std::max(by_memory, operations / ceilings.bf16_per_s)
                                     : by_memory;
  }
};

// Every weight but the embedding table's, of which a step reads a few rows.
double weights_per_step(const Hyperparameters& h) {
  const double q = static_cast<double>(h.head_count) * h.head_dim;
  const double kv = static_cast<double>(h.kv_head_count) * h.head_dim;
  return h.layer_count * (2 * q + 2 * kv + 3.0 * h.ff_dim) * h.hidden_dim +
         static_cast<double>(h.vocab_count) * h.hidden_dim;
}

double bytes_per_weight(DType type) {
  return static_cast<double>(dtype_info(type).block_bytes) / dtype_info(type).block_elems;
}

double kv_bytes_per_token(const Hyperparameters& h, DType kv_type) {
  const double values = 2.0 * h.layer_count * h.kv_head_count * h.head_dim;
  return kv_type == DType::kQ8_0 ? values * (1.0 + 4.0 / h.head_dim) : values * 2.0;
}

StepCost decode_cost(const Hyperparameters& h, double weight_bytes, int sequences, int context) {
  StepCost cost;
  cost.bytes = weights_per_step(h) * weight_bytes +
               static_cast<double>(sequences) * context * kv_bytes_per_token(h, DType::kBF16);
  cost.operations = 2.0 * sequences * weights_per_step(h) +
                    4.0 * sequences * context * h.layer_count * h.head_count * h.head_dim;
  return cost;
}

// Operations of a prompt: each weight but the head's once a token, and causal attention.
double prefill_operations(const Hyperparameters& h, int tokens) {
  const double head = static_cast<double>(h.vocab_count) * h.hidden_dim;
  return 2.0 * tokens * (weights_per_step(h) - head) + 2.0 * head +
         2.0 * static_cast<double>(tokens) * tokens * h.layer_count * h.head_count * h.head_dim;
}

class Bench {
 public:
  Bench(const ModelBenchConfig& config, const OpenBackend& open, const Print& print)
      : config_(config), open_(open), print_(print) {}

  void run() {
    const char* shape = config_.smoke ? "small" : "glm-4-9b";
    const auto as_stored = [&](DType type, const char* format, double target, double moonshot) {
      steps(shape, {type, format, bytes_per_weight(type), target, moonshot, open_});
    };
    as_stored(DType::kBF16, "bf16", 0.75, 0.90);
    as_stored(DType::kQ8_0, "8-bit", 0.70, 0.85);
    as_stored(DType::kQ4_0, "4-bit", 0.60, 0.78);
    whole_requests();
    // The head stays in bf16; of 40 layers that is little.
    for (const auto& [format, open] : config_.activations)
      steps(shape, {DType::kBF16, format + " weights and activations", 1.0, 0.70, 0.85, open});
  }

 private:
  struct Variant {
    DType type;          // of the model's matrices
    std::string format;  // as lines name it
    double bytes_per_weight;
    double target;  // of one sequence, as a share of the copy rate
    double moonshot;
    const OpenBackend& open;
  };

  Result<std::unique_ptr<Stepper>> stepper(const char* shape, const Variant& variant, int rows,
                                           int sequences, int64_t kv_tokens) {
    const auto h = shape_of(shape);
    if (!h) return h.error();
    auto model = RandomWeights::make(shape, *h, variant.type);
    if (!model) return model.error();
    auto backend = variant.open();
    if (!backend) return backend.error();
    return Stepper::open(std::move(*model), std::move(*backend), {rows, sequences, 64, kv_tokens});
  }

  void failed(const std::string& group, const std::string& name, const std::string& why) {
    Line line;
    line.group = group;
    line.name = name;
    line.unit = "";
    line.passed = false;
    line.note = why;
    print_(line);
  }

  double median_of(const std::function<double()>& once) {
    (void)once();  // graphs are captured, pages touched
    std::vector<double> values;
    for (int i = 0; i < config_.repetitions; ++i) values.push_back(once());
    return median(values);
  }

  // Decode and prefill: the model is loaded once for all of them.
  void steps(const char* shape, const Variant& variant) {
    const int rows = config_.smoke ? 64 : 8192;
    const int sequences = config_.smoke ? 8 : 256;
    const int context = config_.smoke ? 32 : 512;
    const int steps = config_.smoke ? 4 : 64;
    const auto h = shape_of(shape);
    auto made = stepper(shape, variant, rows, sequences,
                        int64_t{sequences} * (context + steps) + (config_.smoke ? 64 : 8192));
    const std::string model = std::string(shape) + " " + variant.format;
    if (!made) return failed("decode", model, made.message());
    Stepper& stepper = **made;
    for (const int count : config_.smoke ? std::vector<int>{1, 8} : std::vector<int>{1, 64, 256}) {
      const double seconds = median_of([&] { return stepper.decode(count, context, steps); });
      Line line;
      line.group = "decode";
      line.name =
          model + ", batch " + std::to_string(count) + ", context " + std::to_string(context);
      line.value = count / seconds;
      line.unit = "tokens/s";
      if (config_.ceilings.copy_bytes_per_s > 0.0) {
        const StepCost cost = decode_cost(*h, variant.bytes_per_weight, count, context + steps / 2);
        line.share = count == 1 ? cost.bytes / config_.ceilings.copy_bytes_per_s / seconds
                                : cost.seconds(config_.ceilings) / seconds;
        line.of = count == 1 ? "copy" : "copy or bf16";
        line.target = count == 1 ? variant.target : 0.65;
        line.moonshot = count == 1 ? variant.moonshot : 0.85;
      }
      print_(line);
    }
    for (const int count : config_.smoke ? std::vector<int>{100} : std::vector<int>{2048, 8192}) {
      const double seconds = median_of([&] { return stepper.prefill(count); });
      Line line;
      line.group = "prefill";
      line.name = model + ", " + std::to_string(count) + " tokens";
      line.value = count / seconds;
      line.unit = "tokens/s";
      line.note = std::to_string(seconds * 1e3) + " ms to the first token";
      if (config_.ceilings.bf16_per_s > 0.0) {
        line.share = prefill_operations(*h, count) / config_.ceilings.bf16_per_s / seconds;
        line.of = "bf16";
        line.target = 0.70;
        line.moonshot = 0.88;
      }
      print_(line);
    }
  }

  // The deployment guides' figure: Llama-2-7B in 16 bits, 512 tokens in, 100 out, one at a time.
  void whole_requests() {
    const char* shape = config_.smoke ? "small" : "llama-2-7b";
    const int prompt = config_.smoke ? 20 : 512;
    const int answer = config_.smoke ? 5 : 100;
    const std::string name = std::string(shape) + " 16-bit, " + std::to_string(prompt) + " in, " +
                             std::to_string(answer) + " out, batch 1";
    const auto h = shape_of(shape);
    auto model = RandomWeights::make(shape, *h, DType::kBF16);
    if (!model) return failed("request", name, model.message());
    auto backend = open_();
    if (!backend) return failed("request", name, backend.message());
    EngineConfig engine_config;
    engine_config.context_tokens = prompt + answer + 64;
    engine_config.slots = 1;
    engine_config.step_tokens_max = config_.smoke ? 64 : 2048;
    engine_config.page_tokens = 64;
    engine_config.kv_type = DType::kBF16;
    engine_config.prefix_cache = false;
    engine_config.draft_tokens_max = 0;
    auto engine = Engine::open(engine_config, *model, std::move(*backend), {});
    if (!engine) return failed("request", name, engine.message());
    std::vector<double> firsts;
    const double rate = median_of([&] {
      const Timing timing = request(**engine, *h, prompt, answer);
      firsts.push_back(timing.first_s);
      return answer / timing.whole_s;
    });
    Line line;
    line.group = "request";
    line.name = name;
    line.value = rate;
    line.unit = "tokens/s";
    line.target = config_.smoke ? std::optional<double>() : 240.0;
    line.moonshot = config_.smoke ? std::optional<double>() : 290.0;
    line.note =
        "prompt included; first token after " + std::to_string(median(firsts) * 1e3) + " ms";
    print_(line);
  }

  struct Timing {
    double first_s = 0.0;
    double whole_s = 0.0;
  };

  // Waits for its sequence to end.
  class Sink final : public SequenceSink {
   public:
    void on_start() override {}
    bool on_token(const SampledToken&) override {
      if (first_ns_ == 0) first_ns_ = monotonic_ns();
      return true;
    }
    void on_end(SequenceEnd, int32_t) override {
      const std::lock_guard lock(mutex_);
      end_ns_ = monotonic_ns();
      done_.notify_one();
    }
    Timing wait(int64_t begin_ns) {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [this] { return end_ns_ != 0; });
      return {static_cast<double>(first_ns_ - begin_ns) * 1e-9,
              static_cast<double>(end_ns_ - begin_ns) * 1e-9};
    }

   private:
    std::mutex mutex_;
    std::condition_variable done_;
    int64_t first_ns_ = 0;
    int64_t end_ns_ = 0;
  };

  Timing request(Engine& engine, const Hyperparameters& h, int prompt, int answer) {
    SequenceRequest request;
    request.id = ++requests_;
    for (int i = 0; i < prompt; ++i) request.prompt.push_back((i * 37 + 1) % h.vocab_count);
    request.sampling.max_tokens = answer;
    request.sampling.temperature = 0.0F;
    const auto sink = std::make_shared<Sink>();
    const int64_t begin_ns = monotonic_ns();
    (void)engine.submit(std::move(request), sink);
    return sink->wait(begin_ns);
  }

  const ModelBenchConfig& config_;
  const OpenBackend& open_;
  const Print& print_;
  uint64_t requests_ = 0;
};

}  // namespace

void run_model_bench(const ModelBenchConfig& config, const OpenBackend& open, const Print& print) {
  Bench(config, open, print).run();
}

Result<void> run_file_bench(const std::string& path, const OpenBackend& open, const Print& print) {
  auto model = open_model(path);
  if (!model) return model.error();
  auto backend = open();
  if (!backend) return backend.error();
  constexpr int kSequences = 64;
  auto stepper = Stepper::open(std::move(*model), std::move(*backend),
                               {2048, kSequences, 64, kSequences * 256});
  if (!stepper) return stepper.error();
  const auto line = [&](const std::string& name, double tokens,
                        const std::function<double()>& once) {
    (void)once();
    std::vector<double> seconds;
    for (int i = 0; i < 5; ++i) seconds.push_back(once());
    Line out;
    out.group = "file";
    out.name = name;
    out.value = tokens / median(seconds);
    out.unit = "tokens/s";
    print(out);
  };
  line("pp512", 512, [&] { return (*stepper)->prefill(512); });
  line("pp2048", 2048, [&] { return (*stepper)->prefill(2048); });
  line("tg128", 1, [&] { return (*stepper)->decode(1, 0, 128); });
  line("64 sequences", kSequences, [&] { return (*stepper)->decode(kSequences, 128, 128); });
  return {};
}

}  // namespace updraft::gpu
