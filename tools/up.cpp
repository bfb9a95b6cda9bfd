// updraft up: router + edge + cloud on this machine, each a process of its own, with keys of their
// own; shows that the short request is answered at the edge and the long one in the cloud, then
// stays up until Ctrl-C.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <thread>

#include "common/base/clock.h"
#include "common/config/toml_file.h"
#include "common/net/pool_socket.h"
#include "tools/chat_api.h"
#include "tools/command.h"
#include "tools/daemon.h"
#include "tools/process.h"

namespace updraft {
namespace {

namespace fs = std::filesystem;

constexpr int kStartTimeoutMs = 600000;  // a large model takes its time to load
constexpr int kStopGraceMs = 8000;

constexpr int32_t kOwnEdgeContextTokens =
    4096;  // a gateway's share of a model trained for much more

struct UpFlags {
  std::string configs;       // folder; empty: found
  int32_t port = -1;         // -1: the file's
  int32_t edge_context = 0;  // 0: the demo model's own, or kOwnEdgeContextTokens
  std::string name, edge_model, cloud_model, state;
  bool smoke = false;
};

// configs/up.toml with the flags on top.
struct UpConfig {
  std::string configs;  // folder with router.toml, edge.toml, cloud.toml, up.toml
  int32_t port = 8080;
  std::string name = "updraft-demo";
  std::string edge_model, cloud_model;
  int32_t edge_context = 0;  // tokens; 0: the model's
  std::string state;         // folder for keys and logs
  bool demo = true;          // both models are the committed ones
};

// The configs folder: beside the current folder, else where the program was built or installed.
Result<std::string> find_configs() {
  const fs::path program = program_path();
  const fs::path candidates[] = {"configs", program.parent_path() / "../../configs",
                                 program.parent_path() / "../share/updraft/configs"};
  for (const fs::path& candidate : candidates) {
    std::error_code error;
    if (fs::exists(candidate / "up.toml", error))
      return fs::absolute(candidate).lexically_normal().string();
  }
  return fail("no configs folder with up.toml here, nor beside the program; give --configs FOLDER");
}

std::string default_state_folder() {
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && state[0] == '/')
    return std::string(state) + "/updraft/up";
  if (const char* home = std::getenv("HOME"); home != nullptr && home[0] == '/')
    return std::string(home) + "/.local/state/updraft/up";
  return "/tmp/updraft-" + std::to_string(getuid()) + "/up";
}

Result<UpConfig> load_up_config(const UpFlags& flags) {
  UpConfig config;
  Result<std::string> configs =
      flags.configs.empty() ? find_configs() : Result<std::string>(flags.configs);
  if (!configs) return configs.error();
  config.configs = *configs;
  Result<TomlFile> file = TomlFile::open(config.configs + "/up.toml");
  if (!file) return file.error();
  file->get("up.port", config.port, 0, 65535);
  file->get("up.name", config.name);
  file->get_path("up.edge_model", config.edge_model);
  file->get_path("up.cloud_model", config.cloud_model);
  file->get_path("up.state", config.state);
  if (auto done = file->finish(); !done) return done.error();
  const auto absolute = [](const std::string& path) {
    return fs::absolute(path).lexically_normal().string();
  };
  if (!flags.edge_model.empty()) config.edge_model = absolute(flags.edge_model);
  if (!flags.cloud_model.empty()) config.cloud_model = absolute(flags.cloud_model);
  config.demo = flags.edge_model.empty() && flags.cloud_model.empty();
  config.edge_context =
      flags.edge_context > 0 || config.demo ? flags.edge_context : kOwnEdgeContextTokens;
  if (!flags.name.empty()) {
    config.name = flags.name;
  } else if (!config.demo) {
    config.name = "updraft";  // two models of the user's under one name
  }
  if (flags.port >= 0) config.port = flags.port;
  if (!flags.state.empty()) config.state = absolute(flags.state);
  if (config.state.empty()) config.state = default_state_folder();
  for (const std::string& model : {config.edge_model, config.cloud_model}) {
    if (!fs::exists(model)) return fail("model " + model + ": no such file or folder");
  }
  return config;
}

// Keys of the three daemons, made once and kept.
Result<void> make_keys(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder / "nodes", error);
  if (error) return fail(folder.string() + ": " + error.message());
  fs::permissions(folder, fs::perms::owner_all, error);
  for (const char* name : {"router", "edge", "cloud"}) {
    const std::string path = (folder / name).string();
    if (fs::exists(path) && fs::exists(path + ".pub")) continue;
    if (auto saved = save_curve_keys(new_curve_keys(), path); !saved) return saved;
  }
  for (const char* name : {"edge", "cloud"}) {
    const fs::path source = folder / (std::string(name) + ".pub");
    const fs::path target = folder / "nodes" / (std::string(name) + ".pub");
    fs::copy_file(source, target, fs::copy_options::overwrite_existing, error);
    if (error) return fail(target.string() + ": " + error.message());
  }
  return {};
}

// The three daemons while they run. Owned by the main thread.
class Stack {
 public:
  explicit Stack(UpConfig config) : config_(std::move(config)) {}
  ~Stack() { stop(); }

  Result<void> start() {
    const fs::path keys = fs::path(config_.state) / "keys";
    if (auto made = make_keys(keys); !made) return made;
    const auto key = [&](const char* name) { return (keys / name).string(); };
    if (auto up = launch(
            "router", {"http.port=" + std::to_string(config_.port), "pool.listen=tcp://127.0.0.1:0",
                       "pool.key=" + key("router"), "pool.nodes=" + key("nodes")});
        !up)
      return up;
    if (auto ready = wait_for("router", false); !ready) return ready;
    const std::string pool = facts_["router"]["pool"];
    const auto node = [&](const char* name, const std::string& model, int32_t context) {
      return launch(
          name, {"model.path=" + model, "model.name=" + config_.name,
                 "model.context=" + std::to_string(context), "http.port=0", "pool.routers=" + pool,
                 "pool.router_key=" + key("router.pub"), "pool.key=" + key(name)});
    };
    if (auto up = node("edge", config_.edge_model, config_.edge_context); !up) return up;
    if (auto up = node("cloud", config_.cloud_model, 0); !up) return up;
    for (const char* name : {"edge", "cloud", "router"}) {
      if (auto ready = wait_for(name, true); !ready) return ready;
      std::printf("%-6s ready   http://127.0.0.1:%s   log %s\n", name,
                  facts_[name]["http_port"].c_str(), children_.at(name).log_path().c_str());
      std::fflush(stdout);
    }
    return {};
  }

  std::string url(const char* name = "router") const {
    return "http://127.0.0.1:" + facts_.at(name).at("http_port") + "/v1";
  }

  // The first daemon that has ended, with its last words; empty while all run.
  std::string trouble() {
    for (auto& [name, child] : children_) {
      if (!child.running())
        return name + " ended with " + child.how_it_ended() + ": " + child.last_log_line();
    }
    return {};
  }

  // Nodes first, so that they drain while the router still carries their last tokens.
  void stop() {
    for (const char* name : {"edge", "cloud"}) {
      if (const auto it = children_.find(name); it != children_.end()) it->second.terminate();
    }
    for (const char* name : {"edge", "cloud", "router"}) {
      if (const auto it = children_.find(name); it != children_.end())
        it->second.stop(kStopGraceMs);
    }
    children_.clear();
  }

 private:
  Result<void> launch(const std::string& name, const std::vector<std::string>& settings) {
    const std::string ready_file = config_.state + "/" + name + ".ready";
    std::error_code ignored;
    fs::remove(ready_file, ignored);
    std::vector<std::string> arguments{name, "--config", config_.configs + "/" + name + ".toml",
                                       "--ready-file", ready_file};
    for (const std::string& setting : settings) {
      arguments.push_back("--set");
      arguments.push_back(setting);
    }
    Result<ChildProcess> child =
        ChildProcess::start(name, arguments, config_.state + "/" + name + ".log");
    if (!child) return child.error();
    children_.emplace(name, std::move(child).value());
    return {};
  }

  // Until the daemon has written its ready file and, with `serving`, answers /readyz.
  Result<void> wait_for(const std::string& name, bool serving) {
    const int64_t deadline_ns = monotonic_ns() + kStartTimeoutMs * kNsPerMs;
    const bool terminal = isatty(STDERR_FILENO) != 0;
    std::string why = "it is still starting";
    for (int round = 0; monotonic_ns() < deadline_ns; ++round) {
      if (const std::string problem = trouble(); !problem.empty()) return fail(problem);
      if (facts_[name].empty())
        facts_[name] = read_ready_file(config_.state + "/" + name + ".ready");
      if (!facts_[name].empty()) {
        if (!serving) return {};
        HttpUrl url;
        url.host = "127.0.0.1";
        url.port = static_cast<uint16_t>(std::atoi(facts_[name]["http_port"].c_str()));
        const Result<HttpResponse> ready = HttpClient(url, {}, {1000, 1000}).get("/readyz");
        if (ready && ready->status == 200) {
          if (terminal && round > 0) std::fprintf(stderr, "\r%*s\r", 60, "");
          return {};
        }
        why = ready ? ready->body : ready.message();
      }
      if (terminal)
        std::fprintf(stderr, "\rwaiting for %s %c", name.c_str(), "|/-\\"[round / 5 % 4]);
      if (poll_stop_signal(20) != 0) return fail("stopped while waiting for " + name);
    }
    return fail(name + " was not ready after " + std::to_string(kStartTimeoutMs / 1000) +
                " s: " + why);
  }

  const UpConfig config_;
  std::map<std::string, ChildProcess> children_;
  std::map<std::string, std::map<std::string, std::string>> facts_;
};

Result<std::string> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(path + ": cannot be read");
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// A text that no small context holds: numbered readings and a question about one of them.
std::string long_prompt(size_t bytes) {
  std::string text = "Here is a log of readings:\n";
  int line = 0;
  while (text.size() < bytes) {
    ++line;
    text += std::to_string(line) + ": boiler temperature " + std::to_string(40 + line * 7 % 50) +
            " C, pressure " + std::to_string(1 + line * 3 % 9) + " bar\n";
  }
  return text + "What was the pressure in line " + std::to_string(line / 2) +
         "? Answer with the number only.";
}

struct Sample {
  const char* label;
  const char* wanted_tier;
  std::string prompt;
};

// The long prompt is a quarter longer than the edge's context, by a guess of 3 bytes a token.
Result<std::vector<Sample>> make_samples(const UpConfig& config, const HttpClient& edge) {
  if (config.demo) {
    const std::string folder = fs::path(config.edge_model).parent_path().string();
    Result<std::string> short_prompt = read_file(folder + "/demo-short.txt");
    if (!short_prompt) return short_prompt.error();
    Result<std::string> log_prompt = read_file(folder + "/demo-long.txt");
    if (!log_prompt) return log_prompt.error();
    return std::vector<Sample>{{"short", "edge", *short_prompt}, {"long", "cloud", *log_prompt}};
  }
  const Result<std::vector<ServedModel>> served = list_models(edge);
  if (!served) return served.error();
  if (served->empty()) return fail("the edge serves no model");
  const auto bytes = static_cast<size_t>(served->front().context_tokens) * 15 / 4;
  return std::vector<Sample>{{"short", "edge", "Say hello in one short sentence."},
                             {"long", "cloud", long_prompt(bytes)}};
}

// First line and length of a prompt, for the terminal.
std::string shown(const std::string& prompt) {
  std::string line = prompt.substr(0, prompt.find('\n'));
  if (line.size() > 60) line = line.substr(0, 57) + "...";
  return "\"" + line + "\" (" + std::to_string(prompt.size()) + " bytes)";
}

// Asks one sample and prints what came back. An empty string: as wanted; else what was wrong.
std::string try_sample(const HttpClient& client, const UpConfig& config, const Sample& sample) {
  std::printf("\n%s request %s\n", sample.label, shown(sample.prompt).c_str());
  ChatOptions options;
  options.model = config.name;
  options.max_tokens = 64;
  std::printf("  answer         ");
  const Result<ChatAnswer> answer =
      ask(client, options, {{"user", sample.prompt}}, [](std::string_view piece) {
        for (const char c : piece) std::fputc(c == '\n' ? ' ' : c, stdout);
        std::fflush(stdout);
        return true;
      });
  std::printf("\n");
  if (!answer) {
    std::printf("  failed         %s\n", answer.message().c_str());
    return std::string("the ") + sample.label + " request failed: " + answer.message();
  }
  std::printf(
      "  served by      %s, node %s (%s)\n  prompt tokens  %lld\n  TTFT           %.1f ms\n  speed "
      "         %.1f tokens/s%s\n",
      answer->tier.c_str(), answer->node.c_str(), answer->decision.c_str(),
      static_cast<long long>(answer->prompt_tokens), answer->ttft_ms, answer->tokens_per_s(),
      answer->came_at_once() ? ", prompt included (all came at once)" : "");
  std::fflush(stdout);
  if (answer->tier != sample.wanted_tier) {
    return std::string("the ") + sample.label + " request was served by the " + answer->tier +
           ", not by the " + sample.wanted_tier;
  }
  if (answer->text.empty())
    return std::string("the ") + sample.label + " request got an empty answer";
  return {};
}

void print_invitation(const UpConfig& config, const std::string& url) {
  std::printf(
      "\nUpdraft is up. Endpoint: %s   model: %s\n"
      "  curl %s/chat/completions -H 'Content-Type: application/json' \\\n"
      "    -d "
      "'{\"model\":\"%s\",\"temperature\":0,\"messages\":[{\"role\":\"user\",\"content\":\"Open "
      "Settings\"}]}'\n"
      "  build/bin/updraft chat --url %s        (or --local: through shared memory)\n"
      "Ctrl-C stops everything.\n",
      url.c_str(), config.name.c_str(), url.c_str(), config.name.c_str(), url.c_str());
  std::fflush(stdout);
}

int watch_until_stopped(Stack& stack) {
  for (;;) {
    if (poll_stop_signal(500) != 0) {
      std::printf("\nstopping\n");
      stack.stop();
      return 0;
    }
    if (const std::string problem = stack.trouble(); !problem.empty()) {
      stack.stop();
      return complain(problem);
    }
  }
}

// A folder for one smoke run, removed at its end.
class SmokeFolder {
 public:
  SmokeFolder() {
    std::string pattern = (fs::temp_directory_path() / "updraft-smoke-XXXXXX").string();
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~SmokeFolder() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

int run_up(UpFlags flags) {
  block_stop_signals();
  std::unique_ptr<SmokeFolder> smoke_folder;
  if (flags.smoke) {
    smoke_folder = std::make_unique<SmokeFolder>();
    if (smoke_folder->path().empty()) return complain("no temporary folder can be made");
    if (flags.state.empty()) flags.state = smoke_folder->path();
    if (flags.port < 0) flags.port = 0;
    // A private place for the local socket too, so that a smoke run never meets a daemon that is
    // already there.
    setenv("XDG_RUNTIME_DIR", flags.state.c_str(), 1);
  }
  const Result<UpConfig> config = load_up_config(flags);
  if (!config) return complain(config.message());
  std::error_code error;
  fs::create_directories(config->state, error);
  if (error) return complain(config->state + ": " + error.message());

  const int64_t begin_ns = monotonic_ns();
  Stack stack(*config);
  if (auto started = stack.start(); !started) return complain(started.message());
  std::printf("all three ready after %.1f s\n",
              static_cast<double>(monotonic_ns() - begin_ns) / kNsPerSecond);

  const Result<HttpUrl> url = HttpUrl::parse(stack.url());
  if (!url) return complain(url.message());
  const HttpClient client(*url);
  const Result<HttpUrl> edge_url = HttpUrl::parse(stack.url("edge"));
  if (!edge_url) return complain(edge_url.message());
  const Result<std::vector<Sample>> samples = make_samples(*config, HttpClient(*edge_url));
  if (!samples) return complain(samples.message());
  std::string problem;
  for (const Sample& sample : *samples) {
    const std::string found = try_sample(client, *config, sample);
    if (problem.empty()) problem = found;
  }
  if (flags.smoke) {
    stack.stop();
    if (!problem.empty()) return complain("smoke test failed: " + problem);
    std::printf(
        "\nsmoke test passed: the short request was served by the edge, the long one by the "
        "cloud\n");
    return 0;
  }
  if (!problem.empty()) std::fprintf(stderr, "updraft: note: %s\n", problem.c_str());
  print_invitation(*config, stack.url());
  return watch_until_stopped(stack);
}

}  // namespace

void add_up(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<UpFlags>();
  CLI::App* command = app.add_subcommand(
      "up", "bring up router + edge + cloud on this machine and show that they answer");
  command->add_option("--edge-model", flags->edge_model,
                      "model of the edge (default: the demo's, Q4_0, 512 tokens of context)");
  command->add_option("--cloud-model", flags->cloud_model,
                      "model of the cloud (default: the demo's, Q8_0, 4096 tokens)");
  command
      ->add_option("--edge-context", flags->edge_context,
                   "tokens of context at the edge (default: the demo's 512, 4096 for other models)")
      ->check(CLI::Range(0, 1 << 24))
      ->default_str("");
  command->add_option("--name", flags->name, "model name that clients ask for");
  command
      ->add_option("--port", flags->port,
                   "port of the endpoint; 0: any free one (default: up.toml's)")
      ->check(CLI::Range(0, 65535))
      ->default_str("");
  command->add_option("--configs", flags->configs,
                      "folder with up.toml, router.toml, edge.toml, cloud.toml");
  command->add_option("--state", flags->state, "folder for keys and logs");
  command->add_flag("--smoke", flags->smoke,
                    "check that short goes to the edge and long to the cloud, then stop");
  command->callback([flags, &exit_status] { exit_status = run_up(*flags); });
}

}  // namespace updraft
