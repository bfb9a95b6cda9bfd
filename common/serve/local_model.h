// LocalModel: a model file made into an InferenceService: tokenizer + chat template + engine. The edge daemon, the cloud
// node and `updraft run` all answer through it.
//
// Threads: submit() queues all but prompts of at most 1 KiB, which it renders and tokenizes itself (sooner done than another
// thread woken); the prepare thread does that for the rest, so that a 1 MB prompt stalls neither an HTTP nor a pool thread;
// the engine thread runs the steps. Sinks are called on the engine thread, or where it is prepared for what is refused
// before the engine.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/message/node_status.h"
#include "common/message/service.h"
#include "kernels/quant/dtype.h"

namespace updraft {

class Backend;
class Engine;
class Model;

// What LocalModelConfig::isa takes besides nothing.
std::vector<std::string> isa_choices();

struct LocalModelConfig {
  std::string model_path;
  std::string served_name;          // empty: the model's own name
  std::vector<std::string> aliases; // also accepted as `model`
  std::string chat_template;        // family name; empty: recognised from the file
  int32_t context_tokens = 0;       // 0: the model's; never more than it
  int32_t slots = 8;                // sequences running at once, 1..256
  int32_t queue_max = 256;          // requests waiting at most; then kOverloaded
  int32_t page_tokens = 32;         // KV page size
  std::string kv_type = "f16";      // f32, f16, bf16, int8, fp8
  int64_t kv_tokens = 0;            // KV pool in tokens; 0: slots * context, capped by memory
  uint64_t kv_swap_bytes = 0;       // host memory for the KV of sequences that give way, beside a GPU; 0: computed again
  int32_t step_tokens_max = 512;    // token budget of one step
  bool prefix_cache = true;         // prompts of one tenant share the KV pages of what they begin with
  bool speculation = true;          // guess tokens by prompt lookup and verify them; the answers are the same
  int32_t draft_tokens_max = 16;    // guesses of one sequence in one step, 1..64
  std::string backend = "auto";     // auto (a GPU where there is one), cpu, cuda
  std::string weights = "as is";    // fp8: float weights take half the GPU's memory
  std::string activations = "bf16"; // on a GPU: bf16, int8 (W8A8), fp8; float weights are kept in the same format
  bool offload = false;             // weights that the GPU has no room for stay in host memory
  bool tune = true;                 // on a GPU: at start-up the ways of each product are timed and the fastest kept
  std::string tune_cache;           // folder for what was measured; empty: default_tune_folder()
  bool warpgroups = true;           // on an H100 or H200: its own kernels, where they are right and faster
  std::vector<int32_t> gpus = {0};  // indexes of the GPUs; several share the model (tensor parallel)
  int32_t tensor_parallel = 1;      // on the CPU: groups of cores that share the model, one for each socket; 1..16
  std::string isa;                  // empty: the best here; else one of isa_choices()
  int32_t threads = 0;
  std::vector<int> cores;
  uint64_t max_memory_bytes = 0;
  bool exact = false;
  bool ids_suffice = false;         // a file without a tokenizer is opened for prompts of token ids alone
  Tier tier = Tier::kAny;           // what Started says
  std::string node_id = "local";
  // One line about what is no error and yet worth knowing, while the model is opened; empty: unheard.
  std::function<void(const std::string&)> note;
};

// What the pool's beats carry of it.
struct ServiceLoad {
  int32_t slots_total = 0, slots_free = 0, running = 0, waiting = 0;
  int64_t kv_tokens_total = 0, kv_tokens_free = 0;  // cached prefixes count as free
  int64_t kv_tokens_cached = 0;                     // of the free ones, how many hold a prefix
  int64_t prefill_tokens_queued = 0, decode_tokens_reserved = 0;
  float prefill_tokens_per_s = 0.0F, decode_tokens_per_s = 0.0F, bytes_per_token = 0.0F;
  int64_t requests_done = 0, requests_failed = 0;
  int64_t prompt_tokens_total = 0, completion_tokens_total = 0, preemptions = 0;
  int64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0, prefix_evicted_pages = 0;
  int64_t draft_tokens_total = 0, draft_tokens_accepted_total = 0;
  int64_t pages_swapped_out = 0, pages_swapped_in = 0, page_bytes = 0, swap_ns = 0;
};

class LocalModel : public InferenceService {
 public:
  // Loads file, tokenizer, template, backend; too little memory is an error with the figures and what would fit.
  static Result<std::unique_ptr<LocalModel>> open(const LocalModelConfig& config, const Progress& progress);

  // Tokens the prompt of this request would have here (largest of its prompts), counted with the tokenizer, plus the
  // tokens wanted (max_tokens, or 0 when open-ended). Any thread.
  struct Size {
    int32_t prompt_tokens = 0;
    int32_t wanted_tokens = 0;
  };
  virtual Result<Size> measure(const Request& request) const = 0;

  virtual ServiceLoad load() const = 0;             // any thread
  virtual std::string description() const = 0;      // "qwen2.5 0.5B Q4_0, cpu avx512 x2, KV 8192 tokens f16 (96 MiB)"
  virtual std::string device() const = 0;           // the backend's description
  // True when chat requests can be rendered (a template was recognised or configured).
  virtual bool has_chat_template() const = 0;
  // False: the file has no tokenizer (ids_suffice); text is refused, answers are ids without text.
  virtual bool has_tokenizer() const { return true; }
  // New requests get kOverloaded; running ones go on. Any thread.
  virtual void drain() = 0;
};

// Parts of open(), for tools that drive the engine without text: the format that kv_type names, the device that the
// configuration names, and the engine on it with the configuration's context, slots and KV memory.
Result<DType> parse_kv_type(const std::string& name);
// `note` (or null): why "auto" took the CPU though there is a CUDA module. `progress`: of what the device does by itself,
// as long as it lives.
Result<std::unique_ptr<Backend>> open_backend(const LocalModelConfig& config, std::string* note = nullptr,
                                              const Progress& progress = {});
Result<std::unique_ptr<Engine>> open_engine(const LocalModelConfig& config, const std::shared_ptr<const Model>& model,
                                            std::unique_ptr<Backend> backend, const Progress& progress,
                                            std::vector<int32_t> banned_ids = {});

}  // namespace updraft
