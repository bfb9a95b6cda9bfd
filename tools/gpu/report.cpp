#include "tools/gpu/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/base/check.h"

namespace updraft::gpu {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

// JSON has no NaN; what is none is null.
std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

bool passes(const Line& line) {
  if (line.passed) return *line.passed;
  if (!line.target) return true;
  const double judged = line.share.value_or(line.value);
  return line.lower_is_better ? judged <= *line.target : judged >= *line.target;
}

}  // namespace

void print(const Line& line) {
  std::string out = "{\"group\":" + quoted(line.group) + ",\"name\":" + quoted(line.name) +
                    ",\"value\":" + number(line.value) + ",\"unit\":" + quoted(line.unit);
  if (line.share) out += ",\"share\":" + number(*line.share) + ",\"of\":" + quoted(line.of);
  if (line.target) out += ",\"target\":" + number(*line.target);
  if (line.moonshot) out += ",\"moonshot\":" + number(*line.moonshot);
  if (line.target || line.passed)
    out += std::string(",\"pass\":") + (passes(line) ? "true" : "false");
  if (!line.note.empty()) out += ",\"note\":" + quoted(line.note);
  std::printf("%s}\n", out.c_str());
  std::fflush(stdout);
}

}  // namespace updraft::gpu
