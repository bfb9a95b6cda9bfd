// [http] of every daemon's configuration, read in one place: keys, ranges and defaults are the same
// in the router, at the edge and on cloud nodes.
#pragma once

#include <string>
#include <vector>

#include "common/config/toml_file.h"
#include "common/http/server.h"

namespace updraft {

// bind, port, allowed_hosts, limits, who may ask (api_keys_file, jwt_keys_file, jwt_audience,
// jwt_leeway_s) and TLS (tls_cert, tls_key, tls_proxy). Key files are read here, so
// that a broken one is refused with its line and never taken for no authentication.
void read_http_section(TomlFile& file, HttpServerConfig& http);

// Of two readings of a daemon's configuration: what differs and only a start can change. All of
// [http] but its address changes while the server runs.
std::vector<std::string> needs_restart(const Settings& before, const Settings& after);

}  // namespace updraft
