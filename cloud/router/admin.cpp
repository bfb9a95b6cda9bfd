// See the header.
#include "cloud/router/admin.h"

#include <utility>
#include <variant>

#include "common/http/field_reader.h"
#include "common/http/json_body.h"
#include "common/http/json_text.h"
#include "common/http/openai_response.h"

namespace updraft {
namespace {

constexpr int32_t kDrainGraceMs = 30'000;

RouteReply error_reply(int status, const std::string& message, const char* code) {
  RouteReply reply;
  reply.status = status;
  reply.body =
      error_json(message, status >= 500 ? "server_error" : "invalid_request_error", "", code);
  return reply;
}
RouteReply json_reply(std::string body) {
  RouteReply reply;
  reply.body = std::move(body);
  return reply;
}

AuditEntry entry_of(const RouteCall& call, const char* act, std::string object) {
  AuditEntry entry;
  entry.tenant = call.who.tenant;
  entry.user = call.who.name;
  entry.role = role_name(call.who.role);
  entry.remote = call.remote;
  entry.act = act;
  entry.object = std::move(object);
  return entry;
}

std::string strings_json(const std::vector<std::string>& texts) {
  std::string out = "[";
  for (const std::string& text : texts) out += (out.size() > 1 ? "," : "") + json_string(text);
  return out + "]";
}

RouteReply nodes_reply(const AdminTarget& target) {
  std::string out = "{\"nodes\":[";
  const char* comma = "";
  for (const Router::NodeView& node : target.nodes()) {
    out += std::exchange(comma, ",");
    out += "{\"id\":" + json_string(node.id) + ",\"tier\":\"" + tier_name(node.tier) +
           "\",\"state\":" + json_string(node.state) + ",\"models\":" + strings_json(node.models) +
           ",\"running\":" + std::to_string(node.running) + "}";
  }
  return json_reply(out + "]}");
}

RouteReply breakers_reply(const AdminTarget& target) {
  std::string out = "{\"breakers\":[";
  const char* comma = "";
  for (const AdminBreaker& breaker : target.breakers()) {
    out += std::exchange(comma, ",");
    out += "{\"node\":" + json_string(breaker.node_id) +
           ",\"model\":" + json_string(breaker.model) + ",\"state\":" + json_string(breaker.state) +
           ",\"faults\":" + std::to_string(breaker.faults) +
           ",\"requests\":" + std::to_string(breaker.requests) +
           ",\"retry_ms\":" + std::to_string(breaker.retry_ms) + "}";
  }
  return json_reply(out + "]}");
}

std::string limits_json(const KeyLimits& limits) {
  return "{\"requests_per_minute\":" + std::to_string(limits.requests_per_minute) +
         ",\"tokens_per_minute\":" + std::to_string(limits.tokens_per_minute) +
         ",\"concurrent\":" + std::to_string(limits.concurrent) + "}";
}

RouteReply keys_reply(const AdminTarget& target) {
  const std::shared_ptr<const Authenticator> door = target.keys();
  std::string keys;
  std::string tokens;
  if (door != nullptr) {
    for (const ApiKey& key : door->keys()) {
      keys += std::string(keys.empty() ? "" : ",") + "{\"name\":" + json_string(key.name) +
              ",\"tenant\":\"" + tenant_of(key) + "\",\"role\":\"" + role_name(key.role) +
              "\",\"limits\":" + limits_json(key.limits) + "}";
    }
    for (const JwtKey& key : door->token_keys()) {
      tokens += std::string(tokens.empty() ? "" : ",") + "{\"kid\":" + json_string(key.id) +
                ",\"algorithm\":\"" + algorithm_name(key.key.algorithm()) +
                "\",\"issuer\":" + json_string(key.issuer) + ",\"role_max\":\"" +
                role_name(key.role_max) + "\",\"limits\":" + limits_json(key.limits) + "}";
    }
  }
  return json_reply("{\"keys\":[" + keys + "],\"token_keys\":[" + tokens + "]}");
}

// {"grace_ms": N}, or nothing.
std::variant<int32_t, RequestError> grace_of(std::string_view body) {
  if (body.empty()) return kDrainGraceMs;
  auto parsed = read_json(body);
  if (auto* error = std::get_if<RequestError>(&parsed)) return std::move(*error);
  const auto& value = std::get<boost::json::value>(parsed);
  Complaint complaint;
  if (!value.is_object()) {
    complaint.invalid("", "the body must be a JSON object, got " + shown(value));
    return complaint.error();
  }
  const auto grace = FieldReader(value.get_object(), complaint).integer("grace_ms");
  if (complaint.any()) return complaint.error();
  return static_cast<int32_t>(grace.value_or(kDrainGraceMs));
}

RouteReply drain(AdminTarget& target, AuditLog& audit, const RouteCall& call, bool undo) {
  AuditEntry entry = entry_of(call, undo ? "undrain" : "drain", std::string(call.argument));
  RouteReply reply;
  const auto grace = undo ? std::variant<int32_t, RequestError>(0) : grace_of(call.body);
  if (const auto* error = std::get_if<RequestError>(&grace)) {
    entry.outcome = error->message;
    reply.status = http_status(error->code);
    reply.body = error_json(*error);
  } else if (undo ? target.undrain_node(entry.object)
                  : target.drain_node(entry.object, std::get<int32_t>(grace))) {
    entry.outcome = "ok";
    reply.body = "{\"node\":" + json_string(entry.object) + "}";
  } else {
    entry.outcome = "unknown node";
    reply = error_reply(404, "no node '" + entry.object + "' is in the pool", "not_found");
  }
  audit.write(entry);
  return reply;
}

RouteReply reload(AdminTarget& target, AuditLog& audit, const RouteCall& call) {
  AuditEntry entry = entry_of(call, "reload", "");
  const Result<ReloadReport> report = target.reload();
  entry.outcome = report ? "ok" : report.message();
  audit.write(entry);
  if (!report) {
    return error_reply(409, "the old configuration stays in force: " + report.message(),
                       "configuration_refused");
  }
  return json_reply("{\"reloaded\":true,\"needs_restart\":" + strings_json(report->needs_restart) +
                    "}");
}

}  // namespace

std::vector<HttpRoute> admin_routes(AdminTarget& target, AuditLog& audit) {
  return {
      {"GET", "/admin/nodes", Role::kAdmin,
       [&target](const RouteCall&) { return nodes_reply(target); }},
      {"POST", "/admin/nodes/{id}/drain", Role::kAdmin,
       [&](const RouteCall& call) { return drain(target, audit, call, false); }},
      {"POST", "/admin/nodes/{id}/undrain", Role::kAdmin,
       [&](const RouteCall& call) { return drain(target, audit, call, true); }},
      {"GET", "/admin/breakers", Role::kAdmin,
       [&target](const RouteCall&) { return breakers_reply(target); }},
      {"POST", "/admin/reload", Role::kAdmin,
       [&](const RouteCall& call) { return reload(target, audit, call); }},
      {"GET", "/admin/keys", Role::kAdmin,
       [&target](const RouteCall&) { return keys_reply(target); }},
  };
}

void audit_refusal(AuditLog& audit, const AccessRecord& record) {
  if (record.status != 401 && record.status != 403) return;
  AuditEntry entry;
  entry.tenant = record.tenant;
  entry.user = record.user;
  entry.role = record.role;
  entry.remote = record.remote;
  entry.act = "denied";
  entry.object = record.method + " " + record.path;
  entry.outcome = std::to_string(record.status);
  audit.write(entry);
}

}  // namespace updraft
