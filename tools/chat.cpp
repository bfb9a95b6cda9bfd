// updraft chat: a conversation in the terminal, with any OpenAI-compatible endpoint, or with the
// edge daemon of this machine through shared memory (--local).
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>

#include "common/base/clock.h"
#include "common/http/tls.h"
#include "edge/client/local_client.h"
#include "tools/chat_api.h"
#include "tools/command.h"

namespace updraft {
namespace {

struct ChatFlags {
  std::string url = "http://127.0.0.1:8080/v1";
  std::string api_key;
  std::string ca_file;  // empty: the system's certificates
  std::string system;
  std::string prompt;
  bool local = false;
  std::string socket;
  ChatOptions options;
};

volatile std::sig_atomic_t interrupted = 0;  // set by the handler of InterruptsAnswer

// While it lives, Ctrl-C sets `interrupted` instead of ending the program; a second one ends it.
class InterruptsAnswer {
 public:
  InterruptsAnswer() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };
    action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, &before_);
  }
  ~InterruptsAnswer() { sigaction(SIGINT, &before_, nullptr); }
  InterruptsAnswer(const InterruptsAnswer&) = delete;
  InterruptsAnswer& operator=(const InterruptsAnswer&) = delete;

 private:
  struct sigaction before_ {};
};

// Whoever answers a conversation. on_text returns false to stop the answer, which is then whole as
// far as it came.
class Partner {
 public:
  virtual ~Partner() = default;
  virtual Result<ChatAnswer> answer(const std::vector<ChatTurn>& turns,
                                    const std::function<bool(std::string_view)>& on_text) = 0;
};

class HttpPartner final : public Partner {
 public:
  HttpPartner(HttpClient client, ChatOptions options)
      : client_(std::move(client)), options_(std::move(options)) {}
  Result<ChatAnswer> answer(const std::vector<ChatTurn>& turns,
                            const std::function<bool(std::string_view)>& on_text) override {
    return ask(client_, options_, turns, on_text);
  }

 private:
  HttpClient client_;
  ChatOptions options_;
};

class LocalPartner final : public Partner {
 public:
  LocalPartner(std::unique_ptr<LocalClient> client, ChatOptions options)
      : client_(std::move(client)), options_(std::move(options)) {}

  Result<ChatAnswer> answer(const std::vector<ChatTurn>& turns,
                            const std::function<bool(std::string_view)>& on_text) override {
    Request request;
    request.model = options_.model;
    request.sampling.temperature = options_.temperature;
    if (options_.max_tokens > 0) request.sampling.max_tokens = options_.max_tokens;
    for (const ChatTurn& turn : turns) {
      ContentPart part;
      part.text = turn.text;
      request.messages.push_back({turn.role, {part}});
    }
    const int64_t begin_ns = monotonic_ns();
    const auto since_ms = [&] { return static_cast<double>(monotonic_ns() - begin_ns) / kNsPerMs; };
    const Result<uint32_t> handle = client_->submit(std::move(request));
    if (!handle) return handle.error();
    ChatAnswer answer;
    bool left = false;
    for (;;) {
      auto next = client_->next(-1);
      if (!next) return next.error();
      if (!*next || (*next)->first != *handle) continue;
      Event& event = (*next)->second;
      if (const auto* started = std::get_if<Started>(&event)) {
        answer.tier = tier_name(started->tier);
        answer.node = started->node_id;
        answer.decision = started->decision;
      } else if (const auto* chunk = std::get_if<TokenChunk>(&event)) {
        if (answer.text.empty() && !chunk->text.empty()) answer.ttft_ms = since_ms();
        answer.text += chunk->text;
        if (left || on_text(chunk->text)) continue;
        left = true;
        client_->cancel(*handle);
      } else if (const auto* finished = std::get_if<Finished>(&event)) {
        answer.prompt_tokens = finished->usage.prompt_tokens;
        answer.completion_tokens = finished->usage.completion_tokens;
        // A short answer is all there when its first piece is read: the node's own clock tells how
        // long the rest of it took.
        const int64_t decode_ns = finished->timings.total_ns - finished->timings.first_token_ns;
        answer.total_ms =
            std::max(since_ms(), answer.ttft_ms + static_cast<double>(decode_ns) / kNsPerMs);
        return answer;
      } else if (left) {
        answer.total_ms = since_ms();
        return answer;
      } else {
        return fail(std::get<RequestError>(event).message);
      }
    }
  }

 private:
  std::unique_ptr<LocalClient> client_;
  ChatOptions options_;
};

Result<std::unique_ptr<Partner>> connect_http(const ChatFlags& flags) {
  const Result<HttpUrl> url = HttpUrl::parse(flags.url);
  if (!url) return url.error();
  HttpFields fields;
  if (!flags.api_key.empty()) fields.emplace_back("authorization", "Bearer " + flags.api_key);
  std::shared_ptr<const TlsTrust> trust;
  if (!flags.ca_file.empty()) {
    if (!url->tls) return fail("--ca is for https, not for " + flags.url);
    auto loaded = TlsTrust::load(flags.ca_file);
    if (!loaded) return loaded.error();
    trust = std::move(*loaded);
  }
  HttpClient client(*url, fields, {}, trust);
  ChatOptions options = flags.options;
  if (options.model.empty()) {
    const Result<std::vector<ServedModel>> models = list_models(client);
    if (!models) return fail(models.message() + " (start one with: updraft up)");
    if (models->empty()) return fail(flags.url + " serves no model at the moment");
    options.model = models->front().name;
  }
  std::fprintf(stderr, "model %s at %s\n", options.model.c_str(), flags.url.c_str());
  return std::unique_ptr<Partner>(
      std::make_unique<HttpPartner>(std::move(client), std::move(options)));
}

Result<std::unique_ptr<Partner>> connect_local(const ChatFlags& flags) {
  LocalClientOptions local;
  local.socket_path = flags.socket;
  local.client_name = "updraft chat";
  Result<std::unique_ptr<LocalClient>> client = LocalClient::connect(local);
  if (!client) return client.error();
  ChatOptions options = flags.options;
  if (options.model.empty()) {
    if ((*client)->welcome().models.empty())
      return fail("the edge daemon serves no model at the moment");
    options.model = (*client)->welcome().models.front().id;
  }
  std::fprintf(stderr, "model %s through shared memory\n", options.model.c_str());
  return std::unique_ptr<Partner>(
      std::make_unique<LocalPartner>(std::move(client).value(), std::move(options)));
}

void print_tier(const ChatAnswer& answer) {
  if (answer.node.empty()) {
    std::printf("nothing has been answered yet\n");
    return;
  }
  std::printf("%s, node %s (%s); %lld prompt tokens, first token after %.0f ms, %.1f tokens/s\n",
              answer.tier.c_str(), answer.node.c_str(), answer.decision.c_str(),
              static_cast<long long>(answer.prompt_tokens), answer.ttft_ms, answer.tokens_per_s());
}

constexpr const char* kHelp =
    "/tier    who answered last, and how fast\n"
    "/reset   forget the conversation\n"
    "/system TEXT   set the system message and forget the conversation\n"
    "/quit    leave (so does Ctrl-D)\n"
    "Ctrl-C   stops an answer that is being written\n";

class Conversation {
 public:
  Conversation(Partner& partner, std::string system)
      : partner_(partner), system_(std::move(system)) {
    reset();
  }

  // One line from the user. False: leave.
  bool take(const std::string& line) {
    if (line == "/quit" || line == "/exit") return false;
    if (line == "/tier") {
      print_tier(last_);
    } else if (line == "/reset") {
      reset();
      std::printf("forgotten\n");
    } else if (line.rfind("/system ", 0) == 0) {
      system_ = line.substr(8);
      reset();
    } else if (!line.empty() && line[0] == '/') {
      std::printf("%s", kHelp);
    } else if (!line.empty()) {
      failed_ = !say(line);
    }
    return true;
  }
  // The last thing said got no answer.
  bool failed() const { return failed_; }

  // False: it failed.
  bool say(const std::string& text) {
    turns_.push_back({"user", text});
    const InterruptsAnswer guard;
    const Result<ChatAnswer> answer = partner_.answer(turns_, [](std::string_view piece) {
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
      return interrupted == 0;
    });
    std::printf("\n");
    if (!answer) {
      complain(answer.message());
      turns_.pop_back();
      return false;
    }
    last_ = *answer;
    turns_.push_back({"assistant", answer->text});
    return true;
  }

 private:
  void reset() {
    turns_.clear();
    if (!system_.empty()) turns_.push_back({"system", system_});
  }

  Partner& partner_;
  std::string system_;
  std::vector<ChatTurn> turns_;
  ChatAnswer last_;
  bool failed_ = false;
};

int run_chat(const ChatFlags& flags) {
  Result<std::unique_ptr<Partner>> partner =
      flags.local ? connect_local(flags) : connect_http(flags);
  if (!partner) return complain(partner.message());
  Conversation conversation(**partner, flags.system);
  if (!flags.prompt.empty()) return conversation.say(flags.prompt) && interrupted == 0 ? 0 : 1;
  const bool terminal = isatty(STDIN_FILENO) != 0;
  if (terminal)
    std::fprintf(stderr, "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves\n");
  std::string line;
  for (;;) {
    if (terminal) {
      std::printf("> ");
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line) || !conversation.take(line)) break;
  }
  if (terminal) {
    std::printf("\n");
    return 0;
  }
  return conversation.failed() ? 1 : 0;  // a script asks by its exit status
}

}  // namespace

void add_chat(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command =
      app.add_subcommand("chat", "talk to an endpoint in the terminal (/tier shows who answered)");
  CLI::Option* url =
      command->add_option("--url", flags->url, "OpenAI-compatible endpoint, with its /v1");
  command
      ->add_flag("--local", flags->local,
                 "talk to this machine's edge daemon through shared memory")
      ->excludes(url);
  command->add_option("--socket", flags->socket,
                      "the edge daemon's socket (default: where `updraft edge` makes it)");
  command->add_option("--api-key", flags->api_key, "API key")->envname("UPDRAFT_API_KEY");
  command->add_option(
      "--ca", flags->ca_file,
      "PEM file of certificates that vouch for an https server (default: the system's)");
  command->add_option("-m,--model", flags->options.model,
                      "model name (default: the first one served)");
  command->add_option("-s,--system", flags->system, "system message");
  command->add_option("-p,--prompt", flags->prompt, "ask this once and leave");
  command->add_option("--temp,--temperature", flags->options.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 2.0));
  command->add_option("-n,--max-tokens", flags->options.max_tokens, "tokens to generate at most")
      ->check(CLI::Range(1, 1 << 24));
  command->callback([flags, &exit_status] { exit_status = run_chat(*flags); });
}

}  // namespace updraft
