// The routes of an inference endpoint: OpenAI's API, health and metrics, and who may ask for what.
#pragma once

#include <vector>

#include "common/http/routes.h"

namespace updraft {

struct ServerState;

// `server` outlives the routes.
std::vector<HttpRoute> openai_routes(const ServerState& server);
// /livez alone, for listeners that answer no requests.
HttpRoute liveness_route();

}  // namespace updraft
