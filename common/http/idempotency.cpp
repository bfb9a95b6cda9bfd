// See the header.
#include "common/http/idempotency.h"

#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "common/base/clock.h"

namespace updraft {
namespace {

// What an entry costs beside its answer, roughly: names, digest, places in the tables.
constexpr size_t kEntryBytes = 512;

// The tenant's length keeps two pairs from being one text.
std::string id_of(std::string_view tenant, std::string_view key) {
  return std::to_string(tenant.size()) + ':' + std::string(tenant) + std::string(key);
}

}  // namespace

IdempotencyStore::Begun IdempotencyStore::begin(std::string_view tenant, std::string_view key,
                                                std::string_view digest, int64_t now_ns) {
  std::string id = id_of(tenant, key);
  auto known = entries_.find(id);
  if (known != entries_.end() && known->second.answer && known->second.expires_ns <= now_ns) {
    drop(id);
    known = entries_.end();
  }
  if (known == entries_.end()) {
    Entry& entry = entries_[std::move(id)];
    entry.tenant = tenant;
    entry.digest = digest;
    return {};
  }
  const Entry& entry = known->second;
  if (entry.digest != digest) return {Verdict::kOtherRequest, nullptr};
  if (!entry.answer) return {Verdict::kInFlight, nullptr};
  return {Verdict::kStored, entry.answer};
}

void IdempotencyStore::finish(std::string_view tenant, std::string_view key, StoredAnswer answer,
                              int64_t now_ns) {
  std::string id = id_of(tenant, key);
  const auto known = entries_.find(id);
  UPDRAFT_CHECK(known != entries_.end() && !known->second.answer, "finish() without begin()");
  const size_t bytes = answer.body.size() + answer.headers.size() + key.size() + kEntryBytes;
  if (answer.body.size() > limits_.answer_bytes_max || bytes > limits_.bytes_max / kTenantShare ||
      limits_.entries_max < kTenantShare) {
    entries_.erase(known);
    return;
  }
  Entry& entry = known->second;
  Share& share = tenants_[entry.tenant];
  entry.answer = std::make_shared<const StoredAnswer>(std::move(answer));
  entry.expires_ns = now_ns + limits_.keep_ms * kNsPerMs;
  entry.bytes = bytes;
  entry.in_all = order_.insert(order_.end(), id);
  entry.in_tenant = share.order.insert(share.order.end(), std::move(id));
  bytes_ += bytes;
  share.bytes += bytes;
  make_room(std::string(tenant), now_ns);
}

void IdempotencyStore::abandon(std::string_view tenant, std::string_view key) {
  const auto known = entries_.find(id_of(tenant, key));
  UPDRAFT_CHECK(known != entries_.end() && !known->second.answer, "abandon() without begin()");
  entries_.erase(known);
}

void IdempotencyStore::set_limits(IdempotencyLimits limits, int64_t now_ns) {
  limits_ = limits;
  std::vector<std::string> tenants;
  for (const auto& [tenant, share] : tenants_) tenants.push_back(tenant);
  for (const std::string& tenant : tenants) make_room(tenant, now_ns);
}

// The oldest stored answers go until all limits hold: those whose time is over, those of this
// tenant, those of all.
void IdempotencyStore::make_room(const std::string& tenant, int64_t now_ns) {
  while (!order_.empty() && entries_.at(order_.front()).expires_ns <= now_ns)
    drop(std::string(order_.front()));
  while (true) {
    const auto share = tenants_.find(tenant);
    if (share == tenants_.end()) break;
    if (share->second.bytes <= limits_.bytes_max / kTenantShare &&
        share->second.order.size() <= limits_.entries_max / kTenantShare)
      break;
    drop(std::string(share->second.order.front()));
  }
  while (bytes_ > limits_.bytes_max || order_.size() > limits_.entries_max)
    drop(std::string(order_.front()));
}

void IdempotencyStore::drop(const std::string& id) {
  const auto known = entries_.find(id);
  Entry& entry = known->second;
  const auto share = tenants_.find(entry.tenant);
  bytes_ -= entry.bytes;
  share->second.bytes -= entry.bytes;
  order_.erase(entry.in_all);
  share->second.order.erase(entry.in_tenant);
  if (share->second.order.empty()) tenants_.erase(share);
  entries_.erase(known);
}

bool is_idempotency_key(std::string_view key) {
  return !key.empty() && key.size() <= 255 &&
         std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7F; });
}

}  // namespace updraft
