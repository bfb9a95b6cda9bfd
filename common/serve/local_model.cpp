// LocalModel: opening (file, tokenizer, template, memory, backend, engine) and the two hops of a
// request: submit() counts and queues, the prepare thread tokenizes and hands sequences to the
// engine.
#include "common/serve/local_model.h"

#include <sys/random.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <limits>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>

#include "common/base/check.h"
#include "common/base/clock.h"
#include "common/base/mailbox.h"
#include "common/base/memory_reading.h"
#include "common/engine/engine.h"
#include "common/engine/random.h"
#include "common/model/model.h"
#include "common/serve/answer.h"
#include "common/serve/devices.h"
#include "common/serve/prepare.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/module/cuda_module.h"

namespace updraft {
namespace {

constexpr int32_t kRetryAfterMsMin = 1'000;
constexpr int32_t kRetryAfterMsMax = 60'000;
constexpr float kAverageWeight = 0.1F;  // of the newest value
// A prompt that takes less time to tokenize than another thread takes to wake up.
constexpr int64_t kPromptBytesAtOnce = 1024;
constexpr size_t kMessagesAtOnce = 8;

bool prepared_at_once(const Request& request) {
  return request.prompt_ids.empty() && request.prompt_parts.empty() &&
         request.messages.size() <= kMessagesAtOnce && request.prompts.size() <= kMessagesAtOnce &&
         prompt_text_bytes(request) <= kPromptBytesAtOnce;
}

void average(float& into, float value) {
  into = into == 0.0F ? value : into + kAverageWeight * (value - into);
}

uint64_t fresh_seed() {
  uint64_t seed = 0;
  // Cannot fail for so few bytes on a booted machine.
  UPDRAFT_CHECK(getrandom(&seed, sizeof seed, 0) == sizeof seed);
  return seed;
}

// A request between submit() and its end.
struct Job {
  Request request;
  EventSink sink;
  uint64_t sequence_first =
      0;  // its sequences' ids are [sequence_first, sequence_first + choice_count)
  int32_t choice_count = 0;
  int64_t received_ns = 0;
  int64_t deadline_ns = 0;
  std::atomic<bool> cancelled{false};
};

struct Parts {
  std::string served_name;
  ModelInfo info;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<const Preparer> preparer;
  std::vector<int32_t> banned_ids;
  std::unique_ptr<Engine> engine;
  int32_t page_tokens = 0;
  bool has_chat_template = false;
  std::string description;
  std::string device;
};

class EngineModel final : public LocalModel {
 public:
  EngineModel(const LocalModelConfig& config, Parts parts)
      : config_(config),
        parts_(std::move(parts)),
        sequences_max_(config.slots + config.queue_max),
        mailbox_(static_cast<size_t>(sequences_max_)) {
    thread_ = std::thread([this] { prepare_loop(); });
  }

  ~EngineModel() override {
    mailbox_.close();
    thread_.join();          // what waits there is answered with kCancelled
    parts_.engine->close();  // and what runs, too; its thread calls into this object until then
  }

  void submit(Request request, EventSink sink) override;
  void expect() override { parts_.engine->expect(); }
  void look_while_idle(std::shared_ptr<IdleWork> origin) override {
    parts_.engine->look_while_idle(std::move(origin));
  }
  void cancel(const RequestId& id) override;
  void pause(const RequestId& id) override;
  void resume(const RequestId& id) override;
  std::vector<ModelInfo> models() const override { return {parts_.info}; }
  bool ready(std::string* why_not) const override;
  Result<Size> measure(const Request& request) const override;
  ServiceLoad load() const override;
  std::string description() const override { return parts_.description; }
  std::string device() const override { return parts_.device; }
  bool has_chat_template() const override { return parts_.has_chat_template; }
  bool has_tokenizer() const override { return parts_.tokenizer->has_text(); }
  void drain() override { draining_.store(true, std::memory_order_relaxed); }

 private:
  using JobPtr = std::shared_ptr<Job>;

  std::vector<JobPtr> jobs_of(const RequestId& id) const;
  void refuse(const EventSink& sink, RequestError error);
  int32_t retry_after_ms_locked() const;
  void finished(const JobPtr& job, const AnswerOutcome& outcome);

  // --- prepare thread ---
  void prepare_loop();
  void prepare(const JobPtr& job);  // and small requests on their sender's thread
  void start(const JobPtr& job, PreparedPrompts prompts);
  void end_early(const JobPtr& job, RequestError error);

  const LocalModelConfig config_;
  Parts parts_;
  const int32_t sequences_max_;  // live at once; one large request may go beyond
  std::atomic<bool> draining_{false};
  Mailbox<JobPtr> mailbox_;

  mutable std::mutex mutex_;  // guards what follows
  std::unordered_multimap<RequestId, JobPtr>
      jobs_;  // an id may return while its cancelled forerunner still ends
  int32_t sequences_live_ = 0;
  uint64_t sequence_next_ = 1;
  int64_t requests_done_ = 0;
  int64_t requests_failed_ = 0;
  int64_t prompt_tokens_total_ = 0;
  int64_t completion_tokens_total_ = 0;
  float bytes_per_token_ = 0.0F;
  float request_ms_ = 0.0F;  // of answered requests

  std::thread thread_;
};

void EngineModel::submit(Request request, EventSink sink) {
  const int64_t now_ns = monotonic_ns();
  if (draining_.load(std::memory_order_relaxed)) {
    RequestError error = error_of(ErrorCode::kOverloaded,
                                  config_.node_id + " is draining and takes no new requests");
    error.retry_after_ms = kRetryAfterMsMin;
    refuse(sink, std::move(error));
    return;
  }
  auto job = std::make_shared<Job>();
  // Counts out of range are refused later, with their reason; here they must only be harmless.
  job->choice_count = std::clamp(total_choices(request), 1, kChoicesMax);
  job->received_ns = now_ns;
  if (request.hints.deadline_ms > 0) {
    const int64_t left_ms =
        std::min(request.hints.deadline_ms, std::numeric_limits<int64_t>::max() / 4 / kNsPerMs);
    job->deadline_ns = now_ns + left_ms * kNsPerMs;
  }
  const RequestId id = request.id;
  job->request = std::move(request);
  job->sink = std::move(sink);
  std::optional<RequestError> full;
  {
    const std::lock_guard lock(mutex_);
    if (sequences_live_ >= sequences_max_) {
      full = error_of(ErrorCode::kOverloaded,
                      parts_.served_name + " is busy: " + std::to_string(sequences_live_) +
                          " answers are running or waiting, as many as it takes");
      full->retry_after_ms = retry_after_ms_locked();
    } else {
      sequences_live_ += job->choice_count;
      job->sequence_first = sequence_next_;
      sequence_next_ += static_cast<uint64_t>(job->choice_count);
      jobs_.emplace(id, job);
    }
  }
  if (full) {
    refuse(job->sink, std::move(*full));
  } else if (prepared_at_once(job->request) && !mailbox_.closed()) {
    prepare(job);
  } else if (!mailbox_.push(job)) {
    // There is room for every admitted job: the mailbox can only be closed.
    end_early(job, error_of(ErrorCode::kCancelled, "the model is being unloaded"));
  }
}

void EngineModel::refuse(const EventSink& sink, RequestError error) {
  {
    const std::lock_guard lock(mutex_);
    ++requests_failed_;
  }
  sink(std::move(error));
}

// Until one of the answers ahead is over, by the average so far.
int32_t EngineModel::retry_after_ms_locked() const {
  const float each_ms = request_ms_ / static_cast<float>(config_.slots);
  const float ahead = static_cast<float>(std::max(sequences_live_ - config_.slots, 1));
  return static_cast<int32_t>(std::clamp(each_ms * ahead, static_cast<float>(kRetryAfterMsMin),
                                         static_cast<float>(kRetryAfterMsMax)));
}

std::vector<EngineModel::JobPtr> EngineModel::jobs_of(const RequestId& id) const {
  std::vector<JobPtr> jobs;
  const std::lock_guard lock(mutex_);
  const auto [begin, end] = jobs_.equal_range(id);
  for (auto entry = begin; entry != end; ++entry) jobs.push_back(entry->second);
  return jobs;
}

// Who has an event that nobody reads is in the engine's hands already: one that is still being
// prepared need not be remembered.
void EngineModel::pause(const RequestId& id) {
  for (const JobPtr& job : jobs_of(id)) {
    for (int32_t i = 0; i < job->choice_count; ++i)
      parts_.engine->pause(job->sequence_first + static_cast<uint64_t>(i));
  }
}

void EngineModel::resume(const RequestId& id) {
  for (const JobPtr& job : jobs_of(id)) {
    for (int32_t i = 0; i < job->choice_count; ++i)
      parts_.engine->resume(job->sequence_first + static_cast<uint64_t>(i));
  }
}

void EngineModel::cancel(const RequestId& id) {
  for (const JobPtr& job : jobs_of(id)) {
    // Either the prepare thread sees the flag after it handed over the sequences, or the engine
    // knows them already.
    job->cancelled.store(true);
    for (int32_t i = 0; i < job->choice_count; ++i) {
      parts_.engine->cancel(job->sequence_first + static_cast<uint64_t>(i));
    }
  }
}

bool EngineModel::ready(std::string* why_not) const {
  if (!draining_.load(std::memory_order_relaxed)) return true;
  if (why_not != nullptr) *why_not = "draining";
  return false;
}

Result<LocalModel::Size> EngineModel::measure(const Request& request) const {
  const auto outcome = parts_.preparer->tokenize(request);
  if (const auto* error = std::get_if<RequestError>(&outcome)) return updraft::fail(error->message);
  Size size;
  for (const PreparedPrompt& prompt : std::get<PreparedPrompts>(outcome)) {
    size.prompt_tokens = std::max(size.prompt_tokens, static_cast<int32_t>(prompt.ids.size()));
  }
  size.wanted_tokens = request.sampling.max_tokens.value_or(0);
  return size;
}

ServiceLoad EngineModel::load() const {
  const EngineLoad engine = parts_.engine->load();
  ServiceLoad load;
  load.slots_total = engine.slots_total;
  load.running = engine.running;
  load.kv_tokens_total = parts_.engine->kv_tokens_total();
  load.kv_tokens_free = engine.kv_pages_free * parts_.page_tokens;
  load.kv_tokens_cached = engine.kv_pages_cached * parts_.page_tokens;
  load.prefill_tokens_queued = engine.prefill_tokens_queued;
  load.decode_tokens_reserved = engine.decode_tokens_reserved;
  load.prefill_tokens_per_s = engine.prefill_tokens_per_s;
  load.decode_tokens_per_s = engine.decode_tokens_per_s;
  load.preemptions = engine.preemptions;
  load.pages_swapped_out = engine.pages_swapped_out;
  load.pages_swapped_in = engine.pages_swapped_in;
  load.page_bytes = engine.page_bytes;
  load.swap_ns = engine.swap_ns;
  load.prefix_queried_tokens = engine.prefix_cache.queried_tokens;
  load.prefix_hit_tokens = engine.prefix_cache.hit_tokens;
  load.prefix_evicted_pages = engine.prefix_cache.evicted_pages;
  load.draft_tokens_total = engine.draft_tokens;
  load.draft_tokens_accepted_total = engine.draft_tokens_accepted;
  const std::lock_guard lock(mutex_);
  load.waiting = std::max(sequences_live_ - engine.running, 0);
  load.slots_free = std::max(engine.slots_total - sequences_live_, 0);
  load.bytes_per_token = bytes_per_token_;
  load.requests_done = requests_done_;
  load.requests_failed = requests_failed_;
  load.prompt_tokens_total = prompt_tokens_total_;
  load.completion_tokens_total = completion_tokens_total_;
  return load;
}

void EngineModel::prepare_loop() {
  while (true) {
    // Any time-out does: there is nothing to do until mail arrives.
    if (auto job = mailbox_.wait_pop(std::chrono::hours(1))) {
      if (mailbox_.closed()) {
        end_early(*job, error_of(ErrorCode::kCancelled, "the model is being unloaded"));
      } else {
        prepare(*job);
      }
    } else if (mailbox_.closed()) {
      return;
    }
  }
}

void EngineModel::prepare(const JobPtr& job) {
  if (job->cancelled.load()) {
    end_early(job, error_of(ErrorCode::kCancelled, "the request was cancelled"));
    return;
  }
  if (job->deadline_ns != 0 && job->deadline_ns <= monotonic_ns()) {
    end_early(job, error_of(ErrorCode::kDeadline, "the deadline passed before work began"));
    return;
  }
  auto outcome = parts_.preparer->prepare(job->request);
  if (auto* error = std::get_if<RequestError>(&outcome)) {
    end_early(job, std::move(*error));
    return;
  }
  start(job, std::move(std::get<PreparedPrompts>(outcome)));
}

void EngineModel::start(const JobPtr& job, PreparedPrompts prompts) {
  const Request& request = job->request;
  int64_t prompt_tokens = 0;
  for (const PreparedPrompt& prompt : prompts)
    prompt_tokens += static_cast<int64_t>(prompt.ids.size());
  // Of texts alone: ids and rows in a prompt of parts have no bytes of text.
  if (const int64_t bytes = prompt_text_bytes(request); bytes > 0 && request.prompt_parts.empty()) {
    const std::lock_guard lock(mutex_);
    average(bytes_per_token_, static_cast<float>(bytes) / static_cast<float>(prompt_tokens));
  }

  const auto cancel_all = [this, first = job->sequence_first, count = job->choice_count] {
    for (int32_t i = 0; i < count; ++i) parts_.engine->cancel(first + static_cast<uint64_t>(i));
  };
  AnswerSetup setup;
  setup.sink = job->sink;
  setup.started.node_id = config_.node_id;
  setup.started.tier = config_.tier;
  setup.started.model = parts_.served_name;
  setup.started.prompt_tokens = static_cast<int32_t>(prompt_tokens);
  setup.received_ns = job->received_ns;
  setup.choice_count = job->choice_count;
  setup.prompt_tokens = static_cast<int32_t>(prompt_tokens);
  setup.prompt_count = prompts.size();
  setup.cancel_rest = cancel_all;
  setup.on_done = [this, job](const AnswerOutcome& outcome) { finished(job, outcome); };
  const auto answer = std::make_shared<Answer>(std::move(setup));

  const uint64_t seed = request.sampling.seed ? *request.sampling.seed : fresh_seed();
  const auto n = static_cast<size_t>(request.choice_count);
  for (size_t choice = 0; choice < prompts.size() * n; ++choice) {
    const PreparedPrompt& prompt = prompts[choice / n];
    const bool echo = request.kind == Request::Kind::kCompletion && request.echo;
    ChoiceSetup out;
    out.choice = static_cast<int32_t>(choice);
    out.prompt_index = choice / n;
    out.stop = request.sampling.stop;
    out.answer_starts_text = prompt.answer_starts_text;
    out.logprobs = request.sampling.logprobs;
    out.echo = echo;
    if (echo) {
      // Never with rows, which have no text.
      out.echo_text = request.prompts.empty() ? parts_.tokenizer->decode(prompt.ids, true)
                                              : request.prompts[choice / n];
      out.first_prompt_id = prompt.ids[0];
    }
    SequenceRequest sequence;
    sequence.id = job->sequence_first + choice;
    sequence.prompt = prompt.ids;
    sequence.inputs = prompt.inputs;
    sequence.sampling = request.sampling;
    if (!request.sampling.ignore_eos) sequence.stop_ids = parts_.tokenizer->stop_ids();
    sequence.banned_ids = parts_.banned_ids;
    sequence.priority = request.hints.priority;
    sequence.deadline_ns = job->deadline_ns;
    sequence.tenant = request.tenant;
    sequence.seed = choice_seed(seed, static_cast<uint32_t>(choice));
    sequence.prompt_logprobs = echo && request.sampling.logprobs;
    const bool taken = parts_.engine->submit(
        std::move(sequence),
        std::make_shared<ChoiceSink>(std::move(out), parts_.tokenizer, answer));
    UPDRAFT_CHECK(taken, "the engine's queue has room for every admitted sequence");
  }
  if (job->cancelled.load()) cancel_all();
}

// Before the engine knew of it: the prepare thread, or submit() while the object goes away.
void EngineModel::end_early(const JobPtr& job, RequestError error) {
  finished(job, {true, 0, 0, 0});
  job->sink(std::move(error));
}

void EngineModel::finished(const JobPtr& job, const AnswerOutcome& outcome) {
  const std::lock_guard lock(mutex_);
  const auto [begin, end] = jobs_.equal_range(job->request.id);
  const auto entry =
      std::find_if(begin, end, [&](const auto& candidate) { return candidate.second == job; });
  UPDRAFT_CHECK(entry != end, "a request ended twice");
  jobs_.erase(entry);
  sequences_live_ -= job->choice_count;
  if (outcome.failed) {
    ++requests_failed_;
    return;
  }
  ++requests_done_;
  prompt_tokens_total_ += outcome.prompt_tokens;
  completion_tokens_total_ += outcome.completion_tokens;
  average(request_ms_, static_cast<float>(outcome.total_ns) / static_cast<float>(kNsPerMs));
}

// --- opening ---

}  // namespace

Result<DType> parse_kv_type(const std::string& name) {
  if (name == "f32") return DType::kF32;
  if (name == "f16") return DType::kF16;
  if (name == "bf16") return DType::kBF16;
  if (name == "int8") return DType::kQ8_0;
  if (name == "fp8") return DType::kF8_E4M3;
  return fail("kv_type = \"" + name + "\" is not one of f32, f16, bf16, int8, fp8");
}

Result<std::unique_ptr<Backend>> open_backend(const LocalModelConfig& config, std::string* note,
                                              const Progress& progress) {
  if (config.backend != "auto" && config.backend != "cpu" && config.backend != "cuda") {
    return fail("backend = \"" + config.backend + "\" is not one of auto, cpu, cuda");
  }
  if (config.backend != "cpu") {
    CudaConfig cuda;
    if (config.weights != "as is" && config.weights != "fp8") {
      return fail("weights = \"" + config.weights + "\" is not one of \"as is\", fp8");
    }
    if (config.activations == "int8") {
      cuda.activations = CudaActivations::kInt8;
    } else if (config.activations == "fp8") {
      cuda.activations = CudaActivations::kFp8;
    } else if (config.activations != "bf16") {
      return fail("activations = \"" + config.activations + "\" is not one of bf16, int8, fp8");
    }
    cuda.fp8_weights = config.weights == "fp8";
    cuda.warpgroups = config.warpgroups;
    cuda.max_memory_bytes = config.max_memory_bytes;
    cuda.tune = config.tune;
    cuda.tune_folder = config.tune_cache.empty() ? default_tune_folder() : config.tune_cache;
    cuda.note = config.note;
    cuda.progress = progress;
    auto opened = open_gpus(cuda, config.gpus);
    if (opened) return opened;
    if (config.backend == "cuda") return opened.error("backend = \"cuda\"");
    if (note != nullptr && opened.kind() != static_cast<int>(CudaFailure::kNoModule)) {
      *note = opened.message();
    }
  }
  CpuConfig cpu;
  cpu.thread_count = config.threads;
  cpu.cores = config.cores;
  cpu.max_memory_bytes = config.max_memory_bytes;
  cpu.exact = config.exact;
  if (!config.isa.empty()) {
    const Result<CpuIsa> isa = parse_isa(config.isa);
    if (!isa) return isa.error();
    cpu.isa = *isa;
  }
  return open_cpus(cpu, config.tensor_parallel);
}

namespace {

// A template by name, or the file's. None in the file is not an error: completions work without.
Result<std::shared_ptr<const ChatTemplate>> open_template(const LocalModelConfig& config,
                                                          const TokenizerData& data) {
  if (!config.chat_template.empty()) return ChatTemplate::by_name(config.chat_template);
  if (data.chat_template.empty()) return std::shared_ptr<const ChatTemplate>();
  return ChatTemplate::recognise(data.chat_template);
}

Result<std::shared_ptr<const Tokenizer>> open_tokenizer(const LocalModelConfig& config,
                                                        const Model& model) {
  const TokenizerData& data = model.tokenizer();
  if (config.ids_suffice && data.model.empty())
    return Tokenizer::of_ids(data, model.hyperparameters().vocab_count);
  return Tokenizer::create(data);
}

// "494M", "7.6B".
std::string format_parameters(uint64_t count) {
  std::array<char, 32> text{};
  const auto value = static_cast<double>(count);
  if (count >= 1'000'000'000) {
    std::snprintf(text.data(), text.size(), "%.1fB", value / 1e9);
  } else if (count >= 1'000'000) {
    std::snprintf(text.data(), text.size(), "%.0fM", value / 1e6);
  } else {
    std::snprintf(text.data(), text.size(), "%.0fK", value / 1e3);
  }
  return text.data();
}

Result<void> check_config(const LocalModelConfig& config) {
  const auto range = [](const char* name, int64_t value, int64_t low,
                        int64_t high) -> Result<void> {
    if (value >= low && value <= high) return {};
    return fail(std::string(name) + " = " + std::to_string(value) + " is outside " +
                std::to_string(low) + ".." + std::to_string(high));
  };
  if (auto ok = range("slots", config.slots, 1, 256); !ok) return ok;
  if (auto ok = range("queue_max", config.queue_max, 0, 65'536); !ok) return ok;
  if (auto ok = range("page_tokens", config.page_tokens, 16, 256); !ok) return ok;
  if (auto ok = range("draft_tokens_max", config.draft_tokens_max, 1, 64); !ok) return ok;
  return range("step_tokens_max", config.step_tokens_max, 1, 65'536);
}

}  // namespace

Result<std::unique_ptr<Engine>> open_engine(const LocalModelConfig& config,
                                            const std::shared_ptr<const Model>& model,
                                            std::unique_ptr<Backend> backend,
                                            const Progress& progress,
                                            std::vector<int32_t> banned_ids) {
  const auto kv_type = parse_kv_type(config.kv_type);
  if (!kv_type) return kv_type.error();
  EngineConfig engine;
  // Asking for more than the model was trained for gets what it was trained for.
  engine.context_tokens = std::min(config.context_tokens, model->hyperparameters().context_tokens);
  engine.slots = config.slots;
  // Admission is counted in submit(); twice that leaves room for ends that the engine has not
  // published yet.
  engine.waiting_max = 2 * (config.slots + config.queue_max + kChoicesMax);
  engine.page_tokens = config.page_tokens;
  engine.kv_type = *kv_type;
  engine.kv_tokens = config.kv_tokens;
  engine.kv_swap_bytes = config.kv_swap_bytes;
  engine.step_tokens_max = config.step_tokens_max;
  engine.prefix_cache = config.prefix_cache;
  engine.draft_tokens_max = config.speculation ? config.draft_tokens_max : 0;
  engine.banned_ids = std::move(banned_ids);
  engine.max_memory_bytes = config.max_memory_bytes;
  engine.offload = config.offload && backend->keeps_weights_outside();
  engine.available_memory_bytes = backend->has_own_memory()
                                      ? backend->memory_total_bytes() - backend->memory_used_bytes()
                                      : read_memory_left_bytes();
  return Engine::open(engine, model, std::move(backend), progress);
}

namespace {

// Never to be sampled: the tokenizer's own list and rows of the embedding table that have no token.
std::vector<int32_t> banned_ids(const Tokenizer& tokenizer, int32_t vocab_count) {
  std::vector<int32_t> ids = tokenizer.banned_ids();
  for (int32_t id = tokenizer.vocab_count(); id < vocab_count; ++id) ids.push_back(id);
  return ids;
}

}  // namespace

std::vector<std::string> isa_choices() { return isa_names(); }

Result<std::unique_ptr<LocalModel>> LocalModel::open(const LocalModelConfig& config,
                                                     const Progress& progress) {
  if (const auto checked = check_config(config); !checked) return checked.error();
  const auto model = open_model(config.model_path);
  if (!model) return model.error();
  const std::string& path = config.model_path;
  const auto tokenizer = open_tokenizer(config, **model);
  if (!tokenizer) return tokenizer.error(path);
  const auto chat_template = open_template(config, (*model)->tokenizer());
  if (!chat_template) return chat_template.error(path);
  std::string note;
  auto backend = open_backend(config, &note, progress);
  if (!backend) return backend.error();

  Parts parts;

  const int32_t vocab_count = (*model)->hyperparameters().vocab_count;
  parts.banned_ids = banned_ids(**tokenizer, vocab_count);
  auto engine = open_engine(config, *model, std::move(*backend), progress, parts.banned_ids);
  if (!engine) return engine.error(path);
  parts.engine = std::move(*engine);
  parts.device = parts.engine->device();

  parts.served_name = config.served_name.empty() ? (*model)->name() : config.served_name;
  parts.info.id = parts.served_name;
  parts.info.digest = (*model)->digest();
  parts.info.quantization = (*model)->quantization();
  parts.info.context_tokens = parts.engine->context_tokens();
  parts.info.created = unix_seconds();
  parts.info.embedding_dim = (*model)->hyperparameters().hidden_dim;
  parts.tokenizer = *tokenizer;
  parts.page_tokens = config.page_tokens;
  parts.has_chat_template = *chat_template != nullptr;
  parts.description = parts.served_name + " " + format_parameters((*model)->parameter_count()) +
                      " " + (*model)->quantization() + ", " + parts.device +
                      (note.empty() ? "" : " (" + note + ")") + ", " + parts.engine->description();
  PreparerConfig preparer;
  preparer.model_name = parts.served_name;
  preparer.accepted_names = config.aliases;
  preparer.accepted_names.push_back(parts.served_name);
  preparer.context_tokens = parts.engine->context_tokens();
  preparer.vocab_count = vocab_count;
  preparer.hidden_dim = (*model)->hyperparameters().hidden_dim;
  preparer.no_template_reason = parts.served_name +
                                " has no chat template, so only /v1/completions can be asked; set "
                                "chat_template in the configuration to one of " +
                                known_chat_templates();
  parts.preparer =
      std::make_unique<const Preparer>(std::move(preparer), *tokenizer, *chat_template);
  return std::unique_ptr<LocalModel>(std::make_unique<EngineModel>(config, std::move(parts)));
}

}  // namespace updraft
