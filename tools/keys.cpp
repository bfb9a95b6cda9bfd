// updraft keys: CURVE key pairs of routers and nodes, and API keys for clients.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <utility>
#include <vector>

#include "common/auth/key_file.h"
#include "common/base/bytes.h"
#include "common/net/pool_socket.h"
#include "tools/command.h"

namespace updraft {
namespace {

namespace fs = std::filesystem;

int make_key_pair(const std::string& path, bool force) {
  if (!force && fs::exists(path)) return complain(path + " exists already; --force replaces it");
  const CurveKeys keys = new_curve_keys();
  if (const auto saved = save_curve_keys(keys, path); !saved) return complain(saved.message());
  std::printf("wrote %s (secret, keep it on its machine) and %s.pub\npublic key %s\n", path.c_str(),
              path.c_str(), keys.public_key.c_str());
  return 0;
}

int allow(const std::string& public_file, const std::string& folder, std::string name) {
  const Result<std::string> key = load_public_key(public_file);
  if (!key) return complain(key.message());
  if (name.empty()) name = fs::path(public_file).stem().string();
  std::error_code error;
  fs::create_directories(folder, error);
  const fs::path target = fs::path(folder) / (name + ".pub");
  if (error || !fs::copy_file(public_file, target, fs::copy_options::overwrite_existing, error)) {
    return complain(target.string() + ": " + error.message());
  }
  std::printf("node %s may join: %s\n", name.c_str(), target.c_str());
  return 0;
}

int list(const std::string& folder) {
  const Result<std::vector<AllowedKey>> keys = load_allowed_keys(folder);
  if (!keys) return complain(keys.message());
  for (const AllowedKey& key : *keys)
    std::printf("%-24s %s\n", key.name.c_str(), key.public_key.c_str());
  std::printf("%zu node%s may join\n", keys->size(), keys->size() == 1 ? "" : "s");
  return 0;
}

// A 256-bit key; only its SHA-256 digest is stored.
int make_api_key(const std::string& file, const std::string& name,
                 const std::vector<std::string>& options) {
  if (const auto named = check_key_name(name); !named) return complain(named.message());
  KeyOptions chosen;
  for (const std::string& option : options) {
    if (const auto read = read_key_option(option, chosen); !read) return complain(read.message());
  }
  // A damaged file is found now, not when the daemons read it.
  if (std::error_code error; fs::exists(file, error)) {
    if (const auto known = load_api_keys(file); !known) return complain(known.message());
  }
  const auto secret = random_bytes(32);
  if (!secret) return complain(secret.message());
  const std::string text = "updraft-" + to_hex(as_bytes_view(*secret));
  ApiKey key;
  key.digest = sha256(text);
  key.name = name;
  if (chosen.role != Role::kNobody) key.role = chosen.role;
  key.limits = chosen.limits(key.role);
  std::ofstream out(file, std::ios::app);
  out << api_key_line(key) << '\n';
  if (!out.flush()) return complain(file + ": cannot be written");
  fs::permissions(file, fs::perms::owner_read | fs::perms::owner_write);
  std::printf("API key of %s, a %s (shown once, only its digest is in %s):\n%s\n", name.c_str(),
              role_name(key.role), file.c_str(), text.c_str());
  return 0;
}

struct KeysFlags {
  std::string path, folder;
  std::string node_name;  // empty: the file's
  std::string client_name = "client";
  std::string role;                  // empty: a developer
  std::vector<std::string> options;  // "rpm=60"
  bool force = false;
};

}  // namespace

void add_keys(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<KeysFlags>();
  CLI::App* keys = app.add_subcommand(
      "keys", "make and list keys: nodes and routers (CURVE), clients (API keys)");
  keys->require_subcommand(1);

  CLI::App* make =
      keys->add_subcommand("new", "make a key pair for a router or a node: FILE and FILE.pub");
  make->add_option("file", flags->path, "where to write the secret key")->required();
  make->add_flag("--force", flags->force, "replace an existing pair");
  make->callback([flags, &exit_status] { exit_status = make_key_pair(flags->path, flags->force); });

  CLI::App* permit =
      keys->add_subcommand("allow", "let a node join: copy its .pub file into the router's folder");
  permit->add_option("public_file", flags->path, "the node's .pub file")->required();
  permit->add_option("folder", flags->folder, "the folder named by [pool] nodes in router.toml")
      ->required();
  permit->add_option("--name", flags->node_name, "the node's name (default: the file's)");
  permit->callback(
      [flags, &exit_status] { exit_status = allow(flags->path, flags->folder, flags->node_name); });

  CLI::App* show = keys->add_subcommand("list", "list the nodes that may join");
  show->add_option("folder", flags->folder, "the folder named by [pool] nodes in router.toml")
      ->required();
  show->callback([flags, &exit_status] { exit_status = list(flags->folder); });

  CLI::App* api =
      keys->add_subcommand("api", "make an API key for a client and append its digest to FILE");
  api->add_option("file", flags->path, "the file named by [http] api_keys_file")->required();
  api->add_option("--name", flags->client_name, "whose key it is");
  api->add_option("--role", flags->role,
                  "what it may: guest (chat, small quota), developer (all inference; the default) "
                  "or admin");
  for (const auto& [flag, what] : {std::pair("rpm", "requests per minute, 0: no limit"),
                                   std::pair("tpm", "tokens per minute, 0: no limit"),
                                   std::pair("concurrent", "requests at once, 0: no limit")}) {
    api->add_option_function<std::string>(
        std::string("--") + flag,
        [flags, name = std::string(flag)](const std::string& value) {
          flags->options.push_back(name + "=" + value);
        },
        what);
  }
  api->callback([flags, &exit_status] {
    std::vector<std::string> options = flags->options;
    if (!flags->role.empty()) options.push_back("role=" + flags->role);
    exit_status = make_api_key(flags->path, flags->client_name, options);
  });
}

}  // namespace updraft
