// The measurements, one function per line. The peak probes run before and after every repetition,
// because a shared machine's bandwidth drifts within seconds.
#include "tools/bench/engine_bench.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/base/clock.h"
#include "common/base/median.h"
#include "common/engine/engine.h"
#include "kernels/cpu/peak.h"
#include "tools/bench/file_cache.h"
#include "tools/bench/model_cost.h"
#include "tools/bench/stream.h"

namespace updraft {
namespace {

constexpr int32_t kShortPrompt = 16;      // of the sequences that run at once
constexpr int32_t kStallTokensMax = 512;  // that one of them generates while the prompt arrives
constexpr uint64_t kProbeBytesMax = 512ULL << 20;
constexpr int32_t kLoadsMax = 3;

double seconds_between(int64_t from_ns, int64_t to_ns) {
  return static_cast<double>(to_ns - from_ns) / kNsPerSecond;
}

struct Sample {
  double seconds = 0;
  std::vector<int32_t> ids;  // output
};

class EngineBench {
 public:
  EngineBench(const BenchConfig& config, const BenchOutput& output, const Progress& progress)
      : config_(config), output_(output), progress_(progress) {}

  Result<void> run() {
    Result<void> done = measure_load();
    if (done) done = prepare_probes();
    if (done) done = warm_up();
    for (const int32_t tokens : config_.prompt_tokens) {
      if (done && tokens > 0 && fits("pp" + std::to_string(tokens), tokens + 1))
        done = prefill(tokens);
    }
    if (config_.decode_tokens > 0) {
      if (done && fits(decode_name(0), config_.decode_tokens + 2)) done = decode(0);
      for (const int32_t depth : config_.depths) {
        if (done && depth > 0 && fits(decode_name(depth), depth + config_.decode_tokens + 2))
          done = decode(depth);
      }
    }
    if (done && config_.parallel > 0 && config_.decode_tokens > 0) done = decode_together();
    if (done && config_.parallel > 0) done = stall();
    if (done) done = barrier();
    if (engine_) engine_->close();
    return done;
  }

 private:
  // --- loading ---

  int32_t model_context() const { return model_->hyperparameters().context_tokens; }

  // Context and KV memory that the lines need, within the model's context.
  void size_engine(LocalModelConfig& model) const {
    int32_t context = kShortPrompt + kStallTokensMax;
    for (const int32_t tokens : config_.prompt_tokens) context = std::max(context, tokens + 1);
    for (const int32_t depth : config_.depths)
      context = std::max(context, depth + config_.decode_tokens + 2);
    context = std::max(context, config_.arriving_tokens + 2);
    context = std::min(context, model_context());
    const int64_t page = model.page_tokens;
    const auto pages = [&](int64_t tokens) { return (tokens + page - 1) / page * page; };
    const int64_t together =
        config_.parallel *
        pages(kShortPrompt + std::max(kStallTokensMax, config_.decode_tokens) + 1);
    model.context_tokens = context;
    model.slots = std::max(1, config_.parallel + 1);
    model.kv_tokens = pages(context) + together;
  }

  // From nothing to the first token of a short prompt.
  Result<double> load_once() {
    if (engine_) engine_->close();
    engine_.reset();
    model_.reset();
    const int64_t start_ns = monotonic_ns();
    auto model = open_model(config_.model.model_path);
    if (!model) return model.error();
    model_ = *model;
    LocalModelConfig sized = config_.model;
    size_engine(sized);
    auto backend = open_backend(sized);
    if (!backend) return backend.error();
    device_ = (*backend)->description();
    auto engine = open_engine(sized, model_, std::move(*backend), progress_);
    if (!engine) return engine.error(config_.model.model_path);
    engine_ = std::move(*engine);
    const auto stream = BenchStream::start(*engine_, next_id_++, prompt(0, kShortPrompt), 1);
    stream->wait_end();
    if (!stream->failure().empty()) return fail(stream->failure());
    return seconds_between(start_ns, monotonic_ns());
  }

  Result<void> measure_load() {
    std::vector<double> cold;
    double cold_read = 0;
    if (config_.cold_load) {
      if (auto dropped = drop_file_cache(config_.model.model_path); !dropped) return dropped;
      auto read = read_file_seconds(config_.model.model_path);
      if (!read) return read.error();
      cold_read = *read;
      if (auto dropped = drop_file_cache(config_.model.model_path); !dropped) return dropped;
      auto loaded = load_once();
      if (!loaded) return loaded.error();
      cold.push_back(*loaded);
    } else if (auto read = read_file_seconds(config_.model.model_path); !read) {
      return read.error();
    }
    std::vector<double> warm;
    for (int32_t i = 0; i < std::min(config_.repetitions, kLoadsMax); ++i) {
      auto loaded = load_once();
      if (!loaded) return loaded.error();
      warm.push_back(*loaded);
      if (i == 0) resident_bytes_ = peak_resident_bytes();
    }
    describe();
    if (!cold.empty()) {
      BenchLine line{"load cold", cold.front(), "s", cold, cold_read / cold.front(), "file",
                     0,           "",           ""};
      line.peak = static_cast<double>(model_->file_bytes()) / cold_read / 1e9;
      line.peak_unit = "GB/s";
      output_.line(line);
    }
    load_samples_ = warm;
    return {};
  }

  void describe() {
    BenchSubject subject;
    subject.model = model_->name();
    subject.quantization = model_->quantization();
    subject.device = device_;
    subject.file_bytes = model_->file_bytes();
    subject.parameter_count = model_->parameter_count();
    subject.kv_type = config_.model.kv_type;
    subject.threads = thread_count();
    output_.subject(subject);
  }

  int thread_count() const {
    if (config_.model.threads > 0) return config_.model.threads;
    const size_t cores =
        config_.model.cores.empty() ? process_cores().size() : config_.model.cores.size();
    return static_cast<int>(std::max<size_t>(1, cores));
  }

  Result<void> prepare_probes() {
    ThreadPool::Config threads;
    threads.thread_count = thread_count();
    threads.cores = config_.model.cores.empty() ? process_cores() : config_.model.cores;
    threads.pin_caller = true;
    auto pool = ThreadPool::open(threads);
    if (!pool) return pool.error();
    pool_ = std::move(*pool);
    pool_->pin_caller();
    const auto kv_type = parse_kv_type(config_.model.kv_type);
    if (!kv_type) return kv_type.error();
    cost_ = model_cost(*model_, *kv_type);
    const auto weights = static_cast<uint64_t>(cost_.layer_bytes + cost_.head_bytes);
    CpuIsa isa = available_isas().back();
    if (!config_.model.isa.empty()) {
      const auto named = parse_isa(config_.model.isa);
      if (!named) return named.error();
      isa = *named;
    }
    auto peak = CpuPeak::open(isa, *pool_, std::min(weights, kProbeBytesMax));
    if (!peak) return peak.error();
    peak_.emplace(std::move(*peak));
    report_load();
    return {};
  }

  void report_load() {
    const double read = peak_->read_bytes_per_s(config_.probe_ms);
    const double seconds = median(load_samples_);
    const auto file_bytes = static_cast<double>(model_->file_bytes());
    output_.line({"load", seconds, "s", load_samples_, file_bytes / read / seconds, "read",
                  read / 1e9, "GB/s", ""});
    const auto resident = static_cast<double>(resident_bytes_);
    output_.line({"memory",
                  resident / 1e6,
                  "MB",
                  {resident / 1e6},
                  file_bytes / resident,
                  "file",
                  file_bytes / 1e6,
                  "MB",
                  ""});
  }

  Result<void> warm_up() {
    auto sample = generate(prompt(1, std::min(64, model_context() - 10)), 8);
    return sample ? Result<void>() : Result<void>(sample.error());
  }

  // --- one measurement ---

  std::vector<int32_t> prompt(uint64_t seed, int64_t tokens) const {
    return random_prompt(seed, tokens, model_->hyperparameters().vocab_count);
  }

  bool fits(const std::string& test, int32_t context_tokens) {
    if (context_tokens <= engine_->context_tokens()) return true;
    output_.skipped(test + ": needs " + std::to_string(context_tokens) +
                    " tokens of context, the model has " +
                    std::to_string(engine_->context_tokens()));
    return false;
  }

  struct Generated {
    std::vector<int32_t> ids;
    std::vector<int64_t> token_ns;
    int64_t submitted_ns = 0;
  };
  Result<Generated> generate(std::vector<int32_t> ids, int32_t tokens) {
    const auto stream = BenchStream::start(*engine_, next_id_++, std::move(ids), tokens);
    stream->wait_end();
    if (!stream->failure().empty()) return fail(stream->failure());
    return Generated{stream->ids(), stream->token_ns(), stream->submitted_ns()};
  }

  // Runs the probes of the peaks that matter and remembers them.
  void probe(bool compute) {
    reads_.push_back(peak_->read_bytes_per_s(config_.probe_ms));
    if (!compute) return;
    if (cost_.layer_int8_ops > 0) int8s_.push_back(peak_->int8_ops_per_s(config_.probe_ms));
    if (cost_.layer_float_ops > 0) fmas_.push_back(peak_->fma_ops_per_s(config_.probe_ms));
  }

  PeakRates take_peaks() {
    const auto take = [](std::vector<double>& values) {
      const double middle = values.empty() ? 0.0 : median(values);
      values.clear();
      return middle;
    };
    return {take(int8s_), take(fmas_), take(reads_)};
  }

  // Repeats `once` between probes. tokens: what one repetition counts.
  template <typename Once>
  Result<void> measure(const std::string& test, double tokens, const StepWork& work, Once once) {
    BenchLine line;
    line.test = test;
    line.unit = "tokens/s";
    std::vector<double> seconds;
    probe(true);
    for (int32_t i = 0; i < config_.repetitions; ++i) {
      Result<Sample> sample = once(i);
      if (!sample) return sample.error(test);
      if (i == 0) line.hash = hash_of_ids(sample->ids);
      seconds.push_back(sample->seconds);
      line.samples.push_back(tokens / sample->seconds);
      probe(true);
    }
    line.value = median(line.samples);
    set_share(line, work, median(seconds));
    output_.line(line);
    return {};
  }

  void set_share(BenchLine& line, const StepWork& work, double seconds) {
    const PeakRates peak = take_peaks();
    const Bound bound = least_time(cost_, work, peak);
    line.share = bound.seconds / seconds;
    line.limit = bound.limit;
    line.peak_unit = line.limit == "read" ? "GB/s" : "GOP/s";
    line.peak = (line.limit == "read"   ? peak.read_bytes_per_s
                 : line.limit == "int8" ? peak.int8_ops_per_s
                                        : peak.fma_ops_per_s) /
                1e9;
  }

  // --- the lines ---

  Result<void> prefill(int32_t tokens) {
    const StepWork work{static_cast<double>(tokens), 1, 0, 1};
    return measure("pp" + std::to_string(tokens), tokens, work, [&](int32_t i) -> Result<Sample> {
      auto got = generate(prompt(seed(10, i), tokens), 1);
      if (!got) return got.error();
      return Sample{seconds_between(got->submitted_ns, got->token_ns.front()), got->ids};
    });
  }

  std::string decode_name(int32_t depth) const {
    const std::string name = "tg" + std::to_string(config_.decode_tokens);
    return depth == 0 ? name : name + "@d" + std::to_string(depth);
  }

  Result<void> decode(int32_t depth) {
    const double n = config_.decode_tokens;
    const StepWork work{n, n, n * (depth + (n + 1) / 2), n};
    return measure(decode_name(depth), n, work, [&](int32_t i) -> Result<Sample> {
      auto got = generate(prompt(seed(20, i), std::max(depth, 1)), config_.decode_tokens + 1);
      if (!got) return got.error();
      return Sample{seconds_between(got->token_ns.front(), got->token_ns.back()), got->ids};
    });
  }

  std::vector<std::shared_ptr<BenchStream>> start_together(int32_t repetition, int32_t tokens) {
    std::vector<std::shared_ptr<BenchStream>> streams;
    for (int32_t s = 0; s < config_.parallel; ++s) {
      streams.push_back(BenchStream::start(
          *engine_, next_id_++, prompt(seed(1000 + s, repetition), kShortPrompt), tokens));
    }
    return streams;
  }

  // Counted from when the last of them has its first token to the end of all; they have the same
  // length, so nearly all steps have all of them.
  Result<void> decode_together() {
    const double n = config_.decode_tokens;
    const double all = n * config_.parallel;
    const std::string test = decode_name(0) + "x" + std::to_string(config_.parallel);
    if (!fits(test, kShortPrompt + config_.decode_tokens + 1)) return {};
    const StepWork work{all, all, all * (kShortPrompt + (n + 1) / 2), n};
    return measure(test, all, work, [&](int32_t i) -> Result<Sample> {
      const auto streams = start_together(i, config_.decode_tokens + 1);
      std::vector<int32_t> ids;
      int64_t from_ns = 0;
      int64_t to_ns = 0;
      for (const auto& stream : streams) {
        stream->wait_end();
        if (!stream->failure().empty()) return fail(stream->failure());
        const std::vector<int64_t> token_ns = stream->token_ns();
        from_ns = std::max(from_ns, token_ns.front());
        to_ns = std::max(to_ns, token_ns.back());
        const std::vector<int32_t> own = stream->ids();
        ids.insert(ids.end(), own.begin(), own.end());
      }
      // Tokens of the early ones that came before the count began.
      double early = 0;
      for (const auto& stream : streams) {
        for (const int64_t t : stream->token_ns()) early += t <= from_ns ? 1 : 0;
      }
      const double counted = static_cast<double>(ids.size()) - early;
      return Sample{seconds_between(from_ns, to_ns) * all / counted, std::move(ids)};
    });
  }

  // The longest pause of running streams while a long prompt arrives.
  Result<void> stall() {
    const int32_t tokens = config_.arriving_tokens;
    const std::string test =
        "stall" + std::to_string(tokens) + "x" + std::to_string(config_.parallel);
    if (!fits(test, std::max(tokens + 1, kShortPrompt + kStallTokensMax))) return {};
    BenchLine line;
    line.test = test;
    line.unit = "ms";
    std::vector<double> seconds;
    StepWork work{static_cast<double>(tokens), 1, 0, 1};
    probe(true);
    for (int32_t i = 0; i < config_.repetitions; ++i) {
      const auto streams = start_together(100 + i, kStallTokensMax);
      for (const auto& stream : streams) stream->wait_tokens(4);
      auto arrived = generate(prompt(seed(30, i), tokens), 1);
      if (!arrived) return arrived.error(test);
      const int64_t end_ns = arrived->token_ns.front();
      for (const auto& stream : streams) stream->wait_tokens(stream->ids().size() + 2);
      int64_t gap_ns = 0;
      for (uint64_t id = next_id_ - 1 - streams.size(); id + 1 < next_id_; ++id)
        engine_->cancel(id);
      for (const auto& stream : streams) {
        stream->wait_end();
        gap_ns =
            std::max(gap_ns, longest_gap_ns(stream->token_ns(), arrived->submitted_ns, end_ns));
      }
      if (i == 0) line.hash = hash_of_ids(arrived->ids);
      line.samples.push_back(static_cast<double>(gap_ns) / kNsPerMs);
      seconds.push_back(seconds_between(arrived->submitted_ns, end_ns));
      probe(true);
    }
    line.value = median(line.samples);
    set_share(line, work, median(seconds));
    output_.line(line);
    return {};
  }

  // A fork-join in which every thread takes part and has nothing to do but that. A message to the
  // others and one back are the least.
  Result<void> barrier() {
    constexpr int kRounds = 20'000;
    BenchLine line;
    line.test = "barrier";
    line.unit = "us";
    const int threads = pool_->thread_count();
    for (int32_t i = 0; i < config_.repetitions; ++i) {
      const int64_t start_ns = monotonic_ns();
      for (int r = 0; r < kRounds; ++r) {
        std::atomic<int> arrived{0};
        pool_->for_each(threads, [&](int64_t, int) {
          // Without this one thread would take the items of all.
          arrived.fetch_add(1, std::memory_order_relaxed);
          for (int spins = 0; arrived.load(std::memory_order_relaxed) < threads;) {
            if (++spins % 4096 == 0) std::this_thread::yield();
          }
        });
      }
      line.samples.push_back(static_cast<double>(monotonic_ns() - start_ns) / kRounds / kNsPerUs);
    }
    line.value = median(line.samples);
    if (const double message_ns = peak_->core_to_core_ns(); message_ns > 0) {
      line.peak = 2 * message_ns / kNsPerUs;
      line.peak_unit = "us";
      line.share = line.peak / line.value;
      line.limit = "core-to-core";
    }
    output_.line(line);
    return {};
  }

  static uint64_t seed(uint64_t line, int32_t repetition) {
    return line * 4096 + static_cast<uint64_t>(repetition);
  }

  const BenchConfig& config_;
  const BenchOutput& output_;
  const Progress& progress_;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Engine> engine_;
  std::string device_;
  uint64_t next_id_ = 1;
  std::vector<double> load_samples_;
  uint64_t resident_bytes_ = 0;
  ModelCost cost_;
  std::unique_ptr<ThreadPool> pool_;
  std::optional<CpuPeak> peak_;               // uses the pool
  std::vector<double> int8s_, fmas_, reads_;  // probes since the last line
};

}  // namespace

Result<void> run_engine_bench(const BenchConfig& config, const BenchOutput& output,
                              const Progress& progress) {
  return EngineBench(config, output, progress).run();
}

}  // namespace updraft
