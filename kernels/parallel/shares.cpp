// See the header.
#include "kernels/parallel/shares.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "common/base/check.h"

namespace updraft {
namespace {

// Units of `size` pieces each: the shares in pieces.
std::vector<Share> in_pieces(std::vector<Share> units, int32_t size) {
  for (Share& share : units) {
    share.first *= size;
    share.count *= size;
  }
  return units;
}

// Each KV head's group goes to a run of devices; the runs are those for which the busiest device
// has the least to do. Returns the number of devices of each group.
std::vector<int32_t> devices_per_group(int32_t groups, int32_t group,
                                       std::span<const double> weights) {
  const auto devices = static_cast<int32_t>(weights.size());
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const auto at = [&](int32_t g, int32_t d) {
    return static_cast<size_t>(g) * static_cast<size_t>(devices + 1) + static_cast<size_t>(d);
  };
  // The least load of the busiest, when the first d devices have the first g groups; and the
  // devices of the last of these.
  std::vector<double> best(at(groups, devices) + 1, kNever);
  std::vector<int32_t> last(best.size(), 0);
  best[0] = 0.0;
  for (int32_t g = 1; g <= groups; ++g) {
    for (int32_t d = g; d <= devices - (groups - g); ++d) {
      double run_weight = 0.0;
      for (int32_t run = 1; run <= std::min(d, group); ++run) {
        run_weight += weights[static_cast<size_t>(d - run)];
        const double load = std::max(best[at(g - 1, d - run)], group / run_weight);
        if (load >= best[at(g, d)]) continue;
        best[at(g, d)] = load;
        last[at(g, d)] = run;
      }
    }
  }
  std::vector<int32_t> out(static_cast<size_t>(groups));
  int32_t left = devices;
  for (int32_t g = groups; g > 0; --g) {
    out[static_cast<size_t>(g - 1)] = last[at(g, left)];
    left -= last[at(g, left)];
  }
  UPDRAFT_CHECK(left == 0);
  return out;
}

}  // namespace

Result<std::vector<Share>> share_out(int32_t pieces, std::span<const double> weights) {
  const auto devices = static_cast<int32_t>(weights.size());
  UPDRAFT_CHECK(devices > 0 &&
                std::all_of(weights.begin(), weights.end(), [](double w) { return w > 0.0; }));
  if (pieces < devices) {
    return fail(std::to_string(pieces) + " pieces cannot be shared by " + std::to_string(devices) +
                " devices");
  }
  // One to each that would get less, then the rest in proportion among the others.
  std::vector<int32_t> counts(weights.size(), 0);
  std::vector<bool> least(weights.size(), false);
  int32_t left = pieces;
  double weight = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (least[i] || left * weights[i] / weight >= 1.0) continue;
      least[i] = changed = true;
      counts[i] = 1;
      --left;
      weight -= weights[i];
      break;
    }
  }
  std::vector<std::pair<double, size_t>> remainders;
  int32_t given = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (least[i]) continue;
    const double exact = left * weights[i] / weight;
    counts[i] = static_cast<int32_t>(exact);
    given += counts[i];
    remainders.emplace_back(exact - counts[i], i);
  }
  std::stable_sort(remainders.begin(), remainders.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (size_t i = 0; given < left; ++i, ++given) ++counts[remainders[i % remainders.size()].second];
  std::vector<Share> shares;
  int32_t first = 0;
  for (const int32_t count : counts) {
    shares.push_back({first, count});
    first += count;
  }
  UPDRAFT_CHECK(first == pieces);
  return shares;
}

Result<std::vector<HeadShare>> share_heads(int32_t heads, int32_t group, int32_t unit,
                                           std::span<const double> weights) {
  const auto devices = static_cast<int32_t>(weights.size());
  if (group <= 0 || heads <= 0 || heads % group != 0) {
    return fail(std::to_string(heads) + " heads are no whole groups of " + std::to_string(group));
  }
  if (heads < devices) {
    return fail(std::to_string(heads) + " heads cannot be shared by " + std::to_string(devices) +
                " devices");
  }
  const int32_t groups = heads / group;
  std::vector<HeadShare> out;
  if (groups >= devices) {
    // Several groups stay together where one of them is no multiple of the unit.
    int32_t together = unit / std::gcd(unit, group);
    if (groups % together != 0 || groups / together < devices) together = 1;
    const auto shares = share_out(groups / together, weights);
    if (!shares) return shares.error();
    for (const Share& kv : in_pieces(*shares, together))
      out.push_back({{kv.first * group, kv.count * group}, kv});
    return out;
  }
  size_t device = 0;
  const std::vector<int32_t> runs = devices_per_group(groups, group, weights);
  for (int32_t g = 0; g < groups; ++g) {
    const int32_t run = runs[static_cast<size_t>(g)];
    int32_t together = unit;
    if (group % together != 0 || group / together < run) together = 1;
    const auto shares =
        share_out(group / together, weights.subspan(device, static_cast<size_t>(run)));
    if (!shares) return shares.error();
    for (const Share& in_group : in_pieces(*shares, together))
      out.push_back({{g * group + in_group.first, in_group.count}, {g, 1}});
    device += static_cast<size_t>(run);
  }
  return out;
}

}  // namespace updraft
