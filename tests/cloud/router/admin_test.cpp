// The administrators' listener: who may, what it does, what the audit log says, and what a reload
// changes.
#include "cloud/router/admin.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "common/log/log.h"
#include "tests/support/shared_data.h"
#include "wire_node.h"

using namespace updraft;
using namespace updraft::test;
namespace json = boost::json;

namespace {

// A router from a file in a folder of its own, with a key for each role.
class AdminRouter {
 public:
  AdminRouter() {
    std::filesystem::create_directory(dir_.file("nodes"));
    REQUIRE(save_curve_keys(new_curve_keys(), dir_.file("router")).ok());
    write_keys({{"g", "guest"}, {"d", "developer"}, {"a", "admin"}});
    write_config("");
  }
  void write_keys(const std::map<std::string, std::string>& roles) {
    std::string text;
    for (const auto& [key, role] : roles)
      text += "sha256:" + sha256_hex(key) + " user-" + key + " role=" + role + "\n";
    write("api-keys", text);
  }
  void write_config(const std::string& more) {
    write("router.toml",
          "[http]\nport = 0\napi_keys_file = \"api-keys\"\n[admin]\nport = 0\naudit_file = "
          "\"audit.jsonl\"\n[pool]\nlisten = \"tcp://127.0.0.1:0\"\nkey = \"router\"\nnodes = "
          "\"nodes\"\n" +
              more);
  }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(dir_.file(name)) << text;
    REQUIRE(chmod(dir_.file(name).c_str(), 0600) == 0);
  }
  void start() {
    const auto config = load_router_config(dir_.file("router.toml"));
    REQUIRE_MESSAGE(config.ok(), config.message());
    auto started = Router::start(*config);
    REQUIRE_MESSAGE(started.ok(), started.message());
    router_ = std::move(*started);
  }
  HttpResponse ask(const std::string& method, const std::string& path, const std::string& key,
                   const std::string& body = "{}", bool admin = true) {
    HttpUrl url;
    url.host = "127.0.0.1";
    url.port = admin ? router_->admin_port() : router_->http_port();
    HttpFields fields;
    if (!key.empty()) fields.emplace_back("Authorization", "Bearer " + key);
    const HttpClient client(url, fields, {2000, 10'000});
    auto answer = method == "GET" ? client.get(path) : client.post_json(path, body);
    REQUIRE_MESSAGE(answer.ok(), answer.message());
    return *answer;
  }
  std::vector<json::value> audit() const {
    std::ifstream in(dir_.file("audit.jsonl"));
    std::vector<json::value> entries;
    for (std::string line; std::getline(in, line);) entries.push_back(json::parse(line));
    return entries;
  }
  Router& router() { return *router_; }
  const updraft::testing::TempDir& dir() const { return dir_; }

 private:
  updraft::testing::TempDir dir_;
  std::unique_ptr<Router> router_;
};

const std::vector<std::pair<const char*, const char*>> kAdminRoutes = {
    {"GET", "/admin/nodes"},    {"POST", "/admin/nodes/edge-1/drain"},
    {"GET", "/admin/breakers"}, {"POST", "/admin/nodes/edge-1/undrain"},
    {"POST", "/admin/reload"},  {"GET", "/admin/keys"},
};

// A pool whose administrators see what a test says.
struct FakePool : AdminTarget {
  std::vector<std::string> done;
  std::vector<Router::NodeView> nodes() const override {
    return {{"edge-1", Tier::kEdge, "fresh", {"demo"}, 3}};
  }
  bool drain_node(const std::string& id, int32_t grace_ms) override {
    done.push_back("drain " + id + " " + std::to_string(grace_ms));
    return id == "edge-1";
  }
  bool undrain_node(const std::string& id) override {
    done.push_back("undrain " + id);
    return id == "edge-1";
  }
  std::vector<AdminBreaker> breakers() const override {
    return {{"edge-1", "demo", "open", 6, 9, 1500}};
  }
  Result<ReloadReport> reload() override { return fail("router.toml:3: nonsense"); }
  std::shared_ptr<const Authenticator> keys() const override { return nullptr; }
};

}  // namespace

TEST_CASE("every route of the administrators is for them alone, and on their listener alone") {
  AdminRouter pool;
  pool.start();
  for (const auto& [method, path] : kAdminRoutes) {
    CAPTURE(path);
    CHECK(pool.ask(method, path, "").status == 401);
    CHECK(pool.ask(method, path, "wrong").status == 401);
    CHECK(pool.ask(method, path, "g").status == 403);
    CHECK(pool.ask(method, path, "d").status == 403);
    const int status = pool.ask(method, path, "a").status;
    CHECK(status == (std::string(path).find("edge-1") == std::string::npos ? 200 : 404));
    CHECK(pool.ask(method, path, "a", "{}", false).status == 404);
  }
  CHECK(pool.ask("POST", kChat, "a", chat_body(10)).status == 404);
  CHECK(pool.ask("GET", "/metrics", "a").status == 404);
  FakePool fake;
  auto audit = AuditLog::open(pool.dir().file("other.jsonl"));
  REQUIRE(audit.ok());
  const auto routes = admin_routes(fake, **audit);
  CHECK(routes.size() == kAdminRoutes.size());
  for (const HttpRoute& route : routes) CHECK_MESSAGE(route.least == Role::kAdmin, route.path);
}

TEST_CASE("each act and each refusal is one line of the audit log that says who, what and how") {
  AdminRouter pool;
  pool.start();
  CHECK(pool.ask("POST", "/admin/nodes/edge-9/drain", "a", "{\"grace_ms\":5}").status == 404);
  CHECK(pool.ask("POST", "/admin/reload", "a").status == 200);
  CHECK(pool.ask("POST", "/admin/reload", "d").status == 403);
  CHECK(pool.ask("GET", "/admin/nodes", "").status == 401);
  CHECK(pool.ask("GET", "/admin/nodes", "a").status == 200);
  // A refusal is written when its answer has gone out.
  REQUIRE(eventually([&] { return pool.audit().size() == 4; }));
  const auto entries = pool.audit();
  const auto says = [&](size_t index, const char* act, const char* object, const char* outcome,
                        const char* user) {
    const json::value& entry = entries[index];
    CHECK(entry.at("act").as_string() == act);
    CHECK(entry.at("object").as_string() == object);
    CHECK(entry.at("outcome").as_string() == outcome);
    CHECK(entry.at("user").as_string() == user);
    CHECK(entry.at("remote").as_string().starts_with("127.0.0.1:"));
    CHECK(entry.at("time").as_string().size() == 24);
  };
  says(0, "drain", "edge-9", "unknown node", "user-a");
  says(1, "reload", "", "ok", "user-a");
  says(2, "denied", "POST /admin/reload", "403", "user-d");
  says(3, "denied", "GET /admin/nodes", "401", "");
  CHECK(entries[0].at("role") == "admin");
  CHECK(entries[0].at("tenant").as_string() == sha256_hex("a").substr(0, 16));
  struct stat info {};
  REQUIRE(stat(pool.dir().file("audit.jsonl").c_str(), &info) == 0);
  CHECK((info.st_mode & 0077) == 0);
}

TEST_CASE(
    "an act whose line finds a full disk is done all the same, and told in the daemon's log") {
  AdminRouter pool;
  const std::string file = pool.dir().file("router.toml");
  std::ifstream in(file);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  text.replace(text.find("audit.jsonl"), 11, "/dev/full");
  pool.write("router.toml", text);
  LogConfig log;
  log.file = pool.dir().file("daemon.log");
  REQUIRE(configure_log(log).ok());
  pool.start();
  CHECK(pool.ask("POST", "/admin/reload", "a").status == 200);
  CHECK(pool.ask("GET", "/v1/models", "d", "", false).status == 200);
  CHECK(pool.ask("POST", "/admin/nodes/edge-9/drain", "a").status == 404);
  const std::vector<std::string> wanted = {
      "audit log not written", "No space left", "act=reload", "act=drain",
      "object=edge-9",         "user=user-a"};
  for (const std::string& what : wanted) {
    CAPTURE(what);
    CHECK(eventually([&] {
      std::ifstream lines(log.file);
      return std::string((std::istreambuf_iterator<char>(lines)), {}).find(what) !=
             std::string::npos;
    }));
  }
  REQUIRE(configure_log({}).ok());
}

TEST_CASE("what administrators see and say reaches the pool as it is") {
  updraft::testing::TempDir dir;
  FakePool pool;
  auto audit = AuditLog::open(dir.file("audit.jsonl"));
  REQUIRE(audit.ok());
  const auto routes = admin_routes(pool, **audit);
  Principal who{"t", "alice", Role::kAdmin, {}};
  const auto ask = [&](const char* method, const char* path, const std::string& body = "") {
    const RouteMatch match = find_route(routes, method, path);
    REQUIRE(match.route != nullptr);
    return std::get<RouteFunction>(match.route->answer)({who, "1.2.3.4:5", match.argument, body});
  };
  const json::value nodes = json::parse(ask("GET", "/admin/nodes").body);
  CHECK(nodes.at("nodes").at(0).at("id") == "edge-1");
  CHECK(nodes.at("nodes").at(0).at("tier") == "edge");
  CHECK(nodes.at("nodes").at(0).at("state") == "fresh");
  CHECK(nodes.at("nodes").at(0).at("running") == 3);
  CHECK(nodes.at("nodes").at(0).at("models").at(0) == "demo");
  const json::value breakers = json::parse(ask("GET", "/admin/breakers").body);
  CHECK(breakers.at("breakers").at(0).at("state") == "open");
  CHECK(breakers.at("breakers").at(0).at("faults") == 6);
  CHECK(breakers.at("breakers").at(0).at("retry_ms") == 1500);
  CHECK(ask("POST", "/admin/nodes/edge-1/drain").status == 200);
  CHECK(ask("POST", "/admin/nodes/edge-1/drain", "{\"grace_ms\":1000}").status == 200);
  CHECK(ask("POST", "/admin/nodes/edge-1/undrain").status == 200);
  CHECK(pool.done ==
        std::vector<std::string>{"drain edge-1 30000", "drain edge-1 1000", "undrain edge-1"});
  for (const char* bad : {"{\"grace_ms\":-1}", "{\"grace_ms\":1e400}", "{\"grace_ms\":2147483648}",
                          "[]", "{", "{\"grace_ms\":\"soon\"}"})
    CHECK_MESSAGE(ask("POST", "/admin/nodes/edge-1/drain", bad).status == 400, bad);
  CHECK(pool.done.size() == 3);
  const RouteReply refused = ask("POST", "/admin/reload");
  CHECK(refused.status == 409);
  CHECK(refused.body.find("router.toml:3: nonsense") != std::string::npos);
  CHECK(json::parse(ask("GET", "/admin/keys").body).at("keys").as_array().empty());
}

TEST_CASE("a drained node gets nothing new until it is let back in") {
  AdminRouter pool;
  const CurveKeys keys = new_curve_keys();
  REQUIRE(save_curve_keys(keys, pool.dir().file("cloud-1")).ok());
  std::filesystem::rename(pool.dir().file("cloud-1.pub"), pool.dir().file("nodes/cloud-1.pub"));
  pool.start();
  const auto state = [&] {
    const json::value nodes = json::parse(pool.ask("GET", "/admin/nodes", "a").body);
    const auto& list = nodes.at("nodes").as_array();
    return list.empty() ? std::string() : std::string(list[0].at("state").as_string().c_str());
  };
  const auto router_key = load_public_key(pool.dir().file("router.pub"));
  REQUIRE(router_key.ok());
  WireNode cloud(pool.router().pool_endpoint(), *router_key, keys, "cloud-1", Tier::kCloud, 4096);
  REQUIRE(eventually([&] { return state() == "fresh"; }));
  CHECK(pool.ask("POST", kChat, "d", chat_body(60), false).status == 200);
  CHECK(pool.ask("POST", "/admin/nodes/cloud-1/drain", "a").status == 200);
  REQUIRE(eventually([&] { return state() == "draining"; }));
  CHECK(pool.ask("POST", kChat, "d", chat_body(60), false).status == 503);
  CHECK(pool.ask("POST", "/admin/nodes/cloud-1/undrain", "a").status == 200);
  REQUIRE(eventually([&] { return state() == "fresh"; }));
  CHECK(pool.ask("POST", kChat, "d", chat_body(60), false).status == 200);
}

TEST_CASE("keys are listed without what would let anyone use them") {
  AdminRouter pool;
  pool.start();
  const std::string body = pool.ask("GET", "/admin/keys", "a").body;
  const json::value keys = json::parse(body);
  REQUIRE(keys.at("keys").as_array().size() == 3);
  CHECK(keys.at("keys").at(0).at("name") == "user-a");
  CHECK(keys.at("keys").at(0).at("role") == "admin");
  CHECK(body.find(sha256_hex("a").substr(0, 20)) == std::string::npos);
}

TEST_CASE("a reload takes over keys, names what needs a restart, and a bad file changes nothing") {
  AdminRouter pool;
  pool.start();
  CHECK(pool.ask("GET", "/v1/models", "d", "", false).status == 200);
  pool.write_keys({{"d2", "developer"}, {"a", "admin"}});
  pool.write_config("[queue]\nmax = 7\n[log]\nlevel = \"warn\"\n");
  const HttpResponse done = pool.ask("POST", "/admin/reload", "a");
  REQUIRE(done.status == 200);
  const json::value report = json::parse(done.body);
  CHECK(report.at("needs_restart") == json::array({"log.level", "queue.max"}));
  CHECK(pool.ask("GET", "/v1/models", "d", "", false).status == 401);
  CHECK(pool.ask("GET", "/v1/models", "d2", "", false).status == 200);
  CHECK(pool.ask("GET", "/admin/keys", "a").body.find("user-d2") != std::string::npos);
  const auto stays = [&](const std::string& says) {
    const HttpResponse refused = pool.ask("POST", "/admin/reload", "a");
    CHECK(refused.status == 409);
    CHECK_MESSAGE(refused.body.find(says) != std::string::npos, refused.body);
    CHECK(pool.ask("GET", "/v1/models", "d2", "", false).status == 200);
  };
  pool.write_config("[queue]\nlength = 7\n");
  stays("length");
  pool.write_config("");
  pool.write("api-keys", "nonsense\n");
  stays("api-keys:1");
  pool.write_keys({{"d3", "developer"}});
  stays("admin");  // nobody could undo it
  pool.write_keys({{"d3", "developer"}, {"a2", "admin"}});
  pool.write("cert.pem", "no certificate\n");
  pool.write("cert.key", "no key\n");
  pool.write("router.toml",
             "[http]\nport = 0\napi_keys_file = \"api-keys\"\ntls_cert = \"cert.pem\"\ntls_key = "
             "\"cert.key\"\n[admin]\nport = 0\naudit_file = \"audit.jsonl\"\n[pool]\nkey = "
             "\"router\"\nnodes = \"nodes\"\n");
  stays("cert.pem");
  pool.write_config("");
  CHECK(pool.ask("POST", "/admin/reload", "a").status == 200);
  CHECK(pool.ask("POST", "/admin/reload", "a").status == 401);
  CHECK(pool.ask("POST", "/admin/reload", "a2").status == 200);
}

TEST_CASE("a listener for administrators without an administrator is refused") {
  AdminRouter pool;
  pool.write_keys({{"d", "developer"}});
  const auto none = load_router_config(pool.dir().file("router.toml"));
  REQUIRE_FALSE(none.ok());
  CHECK(none.message().find("role admin") != std::string::npos);
  pool.write_keys({{"a", "admin"}});
  pool.write("router.toml",
             "[http]\napi_keys_file = \"api-keys\"\n[admin]\nport = 0\n[pool]\nkey = "
             "\"router\"\nnodes = \"nodes\"\n");
  CHECK(load_router_config(pool.dir().file("router.toml")).message().find("audit_file") !=
        std::string::npos);
}
