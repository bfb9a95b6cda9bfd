// See the header.
#include "tools/sim/capacity.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "common/base/clock.h"
#include "tools/sim/simulation.h"

namespace updraft::sim {
namespace {

constexpr double kFillShare = 0.2;

double percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0.0;
  const auto rank =
      static_cast<size_t>(std::clamp(std::ceil(share * static_cast<double>(values.size())) - 1.0,
                                     0.0, static_cast<double>(values.size() - 1)));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(rank), values.end());
  return values[rank];
}

std::string text(const char* format, double value) {
  char out[40];
  std::snprintf(out, sizeof out, format, value);
  return out;
}

// A curve in a frame of its own.
class Panel {
 public:
  Panel(double top, std::string title, const std::vector<double>& x) : top_(top), title_(title) {
    x_max_ = *std::max_element(x.begin(), x.end());
  }
  void add(const std::vector<double>& x, const std::vector<double>& y, const char* color,
           const std::string& name) {
    for (const double value : y) y_max_ = std::max(y_max_, value);
    curves_.push_back({x, y, color, name});
  }
  std::string svg() const {
    std::string out = "<rect x='70' y='" + text("%.0f", top_) +
                      "' width='560' height='160' fill='none' stroke='#999'/>\n";
    out += label(70, top_ - 8, title_);
    out += label(8, top_ + 12, text("%.3g", y_max_)) + label(8, top_ + 160, "0");
    out += label(600, top_ + 176, text("%.3g/s", x_max_));
    double name_x = 330;
    for (const Curve& curve : curves_) {
      out += "<polyline fill='none' stroke-width='2' stroke='" + std::string(curve.color) +
             "' points='";
      for (size_t i = 0; i < curve.x.size(); ++i) {
        out += text("%.1f", 70 + 560 * curve.x[i] / x_max_) + "," +
               text("%.1f ", top_ + 160 - (y_max_ > 0 ? 160 * curve.y[i] / y_max_ : 0));
      }
      out += "'/>\n";
      out += "<text font-size='12' fill='" + std::string(curve.color) + "' x='" +
             text("%.0f", name_x) + "' y='" + text("%.0f", top_ - 8) + "'>" + curve.name +
             "</text>\n";
      name_x += 110;
    }
    return out;
  }

 private:
  struct Curve {
    std::vector<double> x;
    std::vector<double> y;
    const char* color;
    std::string name;
  };
  static std::string label(double x, double y, const std::string& what) {
    return "<text font-size='12' x='" + text("%.0f", x) + "' y='" + text("%.0f", y) + "'>" + what +
           "</text>\n";
  }
  double top_;
  std::string title_;
  double x_max_ = 1.0;
  double y_max_ = 0.0;
  std::vector<Curve> curves_;
};

template <typename Get>
std::vector<double> column(const std::vector<CapacityPoint>& points, Get get) {
  std::vector<double> out;
  for (const CapacityPoint& point : points) out.push_back(get(point));
  return out;
}

}  // namespace

Result<CapacityPoint> measure_capacity(const Fleet& fleet, double requests_per_s, double seconds,
                                       uint64_t seed, const std::function<void(int64_t)>& on_time) {
  const auto busy_ns = static_cast<int64_t>(seconds * kNsPerSecond);
  RunOptions options;
  options.on_time = on_time;
  const Scenario scenario = fleet.scenario(requests_per_s, busy_ns);
  const Report report = simulate(scenario, seed, options);
  if (report.violation)
    return fail("the simulation broke '" + report.violation->invariant +
                "': " + report.violation->what);
  const auto from_ns = static_cast<int64_t>(kFillShare * static_cast<double>(busy_ns));
  const double window_s = seconds * (1.0 - kFillShare);
  CapacityPoint point;
  point.requests_per_s = requests_per_s;
  point.edge_busy_share = report.edge_busy_share;
  point.cloud_busy_share = report.cloud_busy_share;
  std::vector<double> ttft;
  std::vector<double> total;
  int64_t asked = 0;
  int64_t finished = 0;
  int64_t by_cloud = 0;
  for (const Outcome& outcome : report.outcomes) {
    // Goodput is what came out in the window; waiting times are of what was asked in it.
    const bool ended_inside = outcome.ended_ns >= from_ns && outcome.ended_ns < busy_ns;
    if (outcome.finished && ended_inside) {
      point.finished_per_s += 1.0 / window_s;
      point.goodput_tokens_per_s += outcome.tokens / window_s;
    }
    if (outcome.submitted_ns < from_ns || outcome.submitted_ns >= busy_ns) continue;
    ++asked;
    if (!outcome.finished) continue;
    ++finished;
    by_cloud += outcome.tier == Tier::kCloud ? 1 : 0;
    const auto since = [&](int64_t at_ns) {
      return static_cast<double>(at_ns - outcome.submitted_ns) / kNsPerSecond;
    };
    ttft.push_back(since(outcome.first_token_ns));
    total.push_back(since(outcome.ended_ns));
  }
  point.refused_share = asked > 0 ? 1.0 - static_cast<double>(finished) / asked : 0.0;
  point.cloud_share = finished > 0 ? static_cast<double>(by_cloud) / finished : 0.0;
  point.ttft_p50_s = percentile(ttft, 0.5);
  point.ttft_p99_s = percentile(ttft, 0.99);
  point.total_p50_s = percentile(total, 0.5);
  point.total_p99_s = percentile(total, 0.99);
  return point;
}

std::vector<double> default_loads(const Fleet& fleet) {
  std::vector<double> loads;
  for (const double share : {0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0})
    loads.push_back(fleet.answers_per_s() * share);
  return loads;
}

std::string capacity_header() {
  return "  asked/s  finished/s   tokens/s  TTFT p50   p99 s  total p50   p99 s  refused  cloud  "
         "edge busy  cloud busy";
}

std::string capacity_row(const CapacityPoint& p) {
  char line[200];
  std::snprintf(line, sizeof line,
                "%9.2f  %10.2f %10.0f  %8.3f %7.2f  %9.2f %7.2f  %5.1f %%  %3.0f %%  %7.0f %%  "
                "%8.0f %%",
                p.requests_per_s, p.finished_per_s, p.goodput_tokens_per_s, p.ttft_p50_s,
                p.ttft_p99_s, p.total_p50_s, p.total_p99_s, 100 * p.refused_share,
                100 * p.cloud_share, 100 * p.edge_busy_share, 100 * p.cloud_busy_share);
  return line;
}

std::string capacity_csv(const std::vector<CapacityPoint>& points) {
  std::string out =
      "requests_per_s,finished_per_s,goodput_tokens_per_s,ttft_p50_s,ttft_p99_s,total_p50_s,"
      "total_p99_s,refused_share,cloud_share,edge_busy_share,cloud_busy_share\n";
  for (const CapacityPoint& p : points) {
    const double values[] = {p.requests_per_s,  p.finished_per_s,  p.goodput_tokens_per_s,
                             p.ttft_p50_s,      p.ttft_p99_s,      p.total_p50_s,
                             p.total_p99_s,     p.refused_share,   p.cloud_share,
                             p.edge_busy_share, p.cloud_busy_share};
    bool first = true;
    for (const double value : values) {
      out += (first ? "" : ",") + text("%.6g", value);
      first = false;
    }
    out += '\n';
  }
  return out;
}

std::string capacity_svg(const std::vector<CapacityPoint>& points) {
  std::string out =
      "<svg xmlns='http://www.w3.org/2000/svg' width='660' height='660' "
      "font-family='sans-serif'>\n<rect width='660' height='660' fill='white'/>\n";
  if (points.empty()) return out + "</svg>\n";
  const auto x = column(points, [](const CapacityPoint& p) { return p.requests_per_s; });
  Panel goodput(30, "goodput over requests/s", x);
  goodput.add(x, column(points, [](const CapacityPoint& p) { return p.goodput_tokens_per_s; }),
              "#1f6fb4", "tokens/s");
  Panel wait(250, "seconds over requests/s", x);
  wait.add(x, column(points, [](const CapacityPoint& p) { return p.total_p99_s; }), "#c0392b",
           "answer p99");
  wait.add(x, column(points, [](const CapacityPoint& p) { return p.ttft_p99_s; }), "#e08e0b",
           "first token p99");
  Panel share(470, "percent over requests/s", x);
  share.add(x, column(points, [](const CapacityPoint& p) { return 100 * p.cloud_share; }),
            "#2e8b57", "cloud");
  share.add(x, column(points, [](const CapacityPoint& p) { return 100 * p.refused_share; }),
            "#c0392b", "refused");
  return out + goodput.svg() + wait.svg() + share.svg() + "</svg>\n";
}

}  // namespace updraft::sim
