// The administrators' routes: what they see of the pool and what they may do to it. Each act is one
// line of the audit log.
//
// Threads: the functions run on the admin listener's io thread; the target's methods may be called
// from any.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cloud/router/audit_log.h"
#include "cloud/router/router.h"
#include "common/http/routes.h"

namespace updraft {

struct AdminBreaker {
  std::string node_id, model;
  std::string state;                 // "closed", "open", "half-open"
  int32_t faults = 0, requests = 0;  // in the window
  int64_t retry_ms = 0;              // open: until one request is let through
};

// What the routes act on.
class AdminTarget {
 public:
  virtual ~AdminTarget() = default;
  virtual std::vector<Router::NodeView> nodes() const = 0;
  // False: unknown node.
  virtual bool drain_node(const std::string& node_id, int32_t grace_ms) = 0;
  virtual bool undrain_node(const std::string& node_id) = 0;
  virtual std::vector<AdminBreaker> breakers() const = 0;
  virtual Result<ReloadReport> reload() = 0;
  // Who may ask for what now; may be null.
  virtual std::shared_ptr<const Authenticator> keys() const = 0;
};

// GET /admin/nodes, POST /admin/nodes/{id}/drain and /undrain, GET /admin/breakers, POST
// /admin/reload, GET /admin/keys; all for admins. Both arguments outlive the routes.
std::vector<HttpRoute> admin_routes(AdminTarget& target, AuditLog& audit);

// What was refused at the admin listener's door goes to the audit log as well.
void audit_refusal(AuditLog& audit, const AccessRecord& record);

}  // namespace updraft
