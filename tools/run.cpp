// updraft run: one model file, one prompt, one process, no daemon.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <sstream>

#include "common/base/clock.h"
#include "common/serve/local_model.h"
#include "tools/command.h"
#include "tools/daemon.h"
#include "tools/model_flags.h"

namespace updraft {
namespace {

struct RunFlags {
  LocalModelConfig model;
  std::string prompt, prompt_file, system;
  std::vector<int32_t> prompt_ids;
  Sampling sampling;
  int32_t max_tokens = 0;
  int64_t seed = -1;
  bool raw = false;
  bool print_ids = false;
  bool quiet = false;
  bool no_thinking = false;
};

// Prints what comes and lets the main thread wait for the end. The sink runs on the model's
// threads.
class Printer {
 public:
  explicit Printer(bool print_ids) : print_ids_(print_ids) {}

  void take(Event event) {
    if (const auto* chunk = std::get_if<TokenChunk>(&event)) {
      if (first_ns_ == 0) first_ns_ = monotonic_ns();
      if (print_ids_) {
        for (const int32_t id : chunk->ids) std::printf("%d ", id);
      } else {
        std::fwrite(chunk->text.data(), 1, chunk->text.size(), stdout);
      }
      std::fflush(stdout);
    }
    if (!is_end(event)) return;
    const std::lock_guard lock(mutex_);
    end_ = std::move(event);
    ended_ = true;
    changed_.notify_all();
  }

  // False on time-out.
  bool wait(int timeout_ms) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [&] { return ended_; });
  }
  // After wait() was true:
  const Event& end() const { return end_; }
  bool printed() const { return first_ns_ != 0; }

 private:
  const bool print_ids_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  int64_t first_ns_ = 0;
  Event end_;
};

Result<std::string> read_prompt(const RunFlags& flags) {
  if (!flags.prompt.empty()) return flags.prompt;
  if (!flags.prompt_file.empty()) {
    std::ifstream in(flags.prompt_file, std::ios::binary);
    if (!in) return fail(flags.prompt_file + ": cannot be read");
    return std::string(std::istreambuf_iterator<char>(in), {});
  }
  if (isatty(STDIN_FILENO) != 0)
    return fail("no prompt: give -p TEXT, -f FILE, --prompt-ids or text on standard input");
  std::string text;
  char buffer[4096];
  size_t got = 0;
  while ((got = std::fread(buffer, 1, sizeof buffer, stdin)) > 0) text.append(buffer, got);
  if (text.empty()) return fail("no prompt: standard input is empty");
  return text;
}

Request make_request(const RunFlags& flags, const std::string& prompt, bool chat) {
  Request request;
  request.id = new_request_id();
  request.sampling = flags.sampling;
  request.enable_thinking = !flags.no_thinking;
  if (flags.max_tokens > 0) request.sampling.max_tokens = flags.max_tokens;
  if (flags.seed >= 0) request.sampling.seed = static_cast<uint64_t>(flags.seed);
  if (!flags.prompt_ids.empty()) {
    request.kind = Request::Kind::kCompletion;
    request.prompt_ids = {flags.prompt_ids};
  } else if (chat) {
    const auto say = [&](const char* role, const std::string& text) {
      ContentPart part;
      part.text = text;
      request.messages.push_back({role, {part}});
    };
    if (!flags.system.empty()) say("system", flags.system);
    say("user", prompt);
  } else {
    request.kind = Request::Kind::kCompletion;
    request.prompts = {prompt};
  }
  return request;
}

void print_timings(const Finished& finished) {
  const Usage& usage = finished.usage;
  const Timings& t = finished.timings;
  const double prefill_s = static_cast<double>(t.first_token_ns - t.queued_ns) / kNsPerSecond;
  const double decode_s = static_cast<double>(t.total_ns - t.first_token_ns) / kNsPerSecond;
  std::fprintf(
      stderr, "\n%d prompt tokens in %.3f s (%.1f tokens/s), %d tokens in %.3f s (%.1f tokens/s)\n",
      usage.prompt_tokens, prefill_s, prefill_s > 0 ? usage.prompt_tokens / prefill_s : 0.0,
      usage.completion_tokens, decode_s,
      decode_s > 0 && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / decode_s : 0.0);
}

int run_model(RunFlags flags) {
  block_stop_signals();
  std::string prompt;
  if (flags.prompt_ids.empty()) {
    Result<std::string> text = read_prompt(flags);
    if (!text) return complain(text.message());
    prompt = std::move(text).value();
  }
  flags.model.slots = 1;
  flags.model.note = [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); };
  flags.model.ids_suffice = !flags.prompt_ids.empty();
  Result<std::unique_ptr<LocalModel>> model = LocalModel::open(flags.model, terminal_progress());
  if (!model) return complain(model.message());
  if (!flags.quiet) std::fprintf(stderr, "%s\n", (*model)->description().c_str());

  if (!(*model)->has_tokenizer()) {
    if (!flags.sampling.stop.empty())
      return complain(flags.model.model_path + " has no tokenizer: --stop cannot be found in ids");
    if (!flags.print_ids && !flags.quiet)
      std::fprintf(stderr, "%s has no tokenizer: the answer is printed as token ids\n",
                   flags.model.model_path.c_str());
    flags.print_ids = true;
  }
  const bool chat = !flags.raw && (*model)->has_chat_template();
  auto printer = std::make_shared<Printer>(flags.print_ids);
  const Request request = make_request(flags, prompt, chat);
  (*model)->submit(request, [printer](Event event) { printer->take(std::move(event)); });
  while (!printer->wait(0)) {
    if (poll_stop_signal(50) != 0) {
      (*model)->cancel(request.id);
      while (!printer->wait(1000)) {
      }
    }
  }
  if (printer->printed()) std::printf("\n");
  if (const auto* error = std::get_if<RequestError>(&printer->end()))
    return complain(error->message);
  if (!flags.quiet) print_timings(std::get<Finished>(printer->end()));
  return 0;
}

}  // namespace

void add_run(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command =
      app.add_subcommand("run", "run one model file in this process, without any daemon");
  command
      ->add_option("-m,--model", flags->model.model_path,
                   "model: .gguf, .safetensors or a folder with config.json")
      ->required();
  CLI::Option* text =
      command->add_option("-p,--prompt", flags->prompt, "what to say; default: standard input");
  CLI::Option* file =
      command->add_option("-f,--file", flags->prompt_file, "read the prompt from a file")
          ->excludes(text);
  command
      ->add_option(
          "--prompt-ids", flags->prompt_ids,
          "prompt as token ids, comma separated (a model without a tokenizer takes nothing "
          "else)")
      ->delimiter(',')
      ->excludes(text)
      ->excludes(file);
  command->add_option("--system", flags->system, "system message");
  command
      ->add_option("-n,--max-tokens", flags->max_tokens,
                   "tokens to generate at most (default: what the context leaves)")
      ->check(CLI::Range(1, 1 << 24));
  command->add_option("--temp,--temperature", flags->sampling.temperature, "0 is greedy")
      ->default_val(0.8F)
      ->check(CLI::Range(0.0, 2.0));
  command->add_option("--top-p", flags->sampling.top_p, "nucleus sampling")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--top-k", flags->sampling.top_k, "0 is off")->check(CLI::Range(0, 1 << 20));
  command->add_option("--min-p", flags->sampling.min_p, "0 is off")->check(CLI::Range(0.0, 1.0));
  command->add_option("--repeat-penalty", flags->sampling.repetition_penalty, "1 is off")
      ->check(CLI::Range(0.1, 10.0));
  command->add_option("--seed", flags->seed, "same seed, same answer");
  command->add_option("--stop", flags->sampling.stop,
                      "end the answer before this text; repeatable");
  command->add_flag("--ignore-eos", flags->sampling.ignore_eos, "go on past the end token");
  command->add_flag("--raw", flags->raw, "continue the text as it is, without the chat template");
  command->add_flag("--no-thinking", flags->no_thinking, "ask a thinking model to answer at once");
  command->add_option("--chat-template", flags->model.chat_template,
                      "family, when the file's template is not known");
  command
      ->add_option("-c,--context", flags->model.context_tokens,
                   "context in tokens (default: the model's)")
      ->check(CLI::Range(0, 1 << 24));
  add_processor_flags(*command, flags->model);
  command->add_flag("--speculation,!--no-speculation", flags->model.speculation,
                    "guess tokens that repeat the context, verify several at once; the answer is "
                    "the same (default: on)");
  command->add_flag("--exact", flags->model.exact,
                    "f32 arithmetic for every format (slow, for comparisons)");
  command->add_flag("--print-ids", flags->print_ids, "print token ids instead of text");
  command->add_flag("-q,--quiet", flags->quiet, "only the answer");
  command->callback([flags, &exit_status] { exit_status = run_model(*flags); });
}

}  // namespace updraft
