// The index is a hash table of pages chained through their entries: no memory is taken after the
// start (but for the salts of first pages).
#include "common/engine/prefix_cache.h"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "common/base/check.h"

namespace updraft {

// One multiplication by an odd constant (2^64 / golden ratio) and one shift per token spread each
// of them over the whole word.
uint64_t hash_prefix(uint64_t before, std::span<const int32_t> ids) {
  uint64_t hash = before;
  for (const int32_t id : ids) {
    hash = (hash ^ static_cast<uint32_t>(id)) * 0x9E3779B97F4A7C15ULL;
    hash ^= hash >> 32;
  }
  return hash;
}

PrefixCache::PrefixCache(int32_t page_count, int32_t page_tokens, PrefixHash hash)
    : page_tokens_(page_tokens), hash_(hash), pool_(page_count) {
  UPDRAFT_CHECK(page_tokens > 0);
  const auto count = static_cast<size_t>(page_count);
  entries_.resize(count);
  ids_.resize(count * static_cast<size_t>(page_tokens));
  buckets_.assign(std::bit_ceil(count), kNoPage);
}

std::optional<int32_t> PrefixCache::take() {
  if (pool_.free_count() == 0 && oldest_ != kNoPage) evict_oldest();
  return pool_.take();
}

void PrefixCache::retain(int32_t page) {
  pool_.retain(page);
  if (at(page).idle) make_held(page);
}

void PrefixCache::release(int32_t page) {
  UPDRAFT_CHECK(holders(page) > 0, "a page that nobody holds was released");
  pool_.release(page);
  if (at(page).cached && holders(page) == 0) make_idle(page);
}

std::vector<int32_t> PrefixCache::match(int32_t parent, std::string_view salt,
                                        std::span<const int32_t> ids) const {
  std::vector<int32_t> out;
  const auto page_tokens = static_cast<size_t>(page_tokens_);
  for (; ids.size() >= page_tokens; ids = ids.subspan(page_tokens)) {
    const std::span<const int32_t> own = ids.first(page_tokens);
    parent = find(hash_after(parent, salt, own), parent, salt, own);
    if (parent == kNoPage) break;
    out.push_back(parent);
  }
  return out;
}

int32_t PrefixCache::add(int32_t page, int32_t parent, std::string_view salt,
                         std::span<const int32_t> ids) {
  UPDRAFT_CHECK(static_cast<int32_t>(ids.size()) == page_tokens_, "only full pages are cached");
  UPDRAFT_CHECK(!at(page).cached && holders(page) == 1, "a page is cached once, by its writer");
  UPDRAFT_CHECK(parent == kNoPage || (at(parent).cached && holders(parent) > 0),
                "who holds a page holds its parents");
  const uint64_t hash = hash_after(parent, salt, ids);
  if (const int32_t known = find(hash, parent, salt, ids); known != kNoPage) {
    retain(known);
    release(page);
    return known;
  }
  pool_.retain(page);  // the cache itself
  Entry& entry = at(page);
  entry.cached = true;
  entry.hash = hash;
  entry.parent = parent;
  if (parent == kNoPage) {
    entry.salt = salt;
  } else {
    ++at(parent).child_count;
  }
  std::copy(ids.begin(), ids.end(), ids_of(page).begin());
  entry.bucket_next = bucket(hash);
  bucket(hash) = page;
  return page;
}

int32_t PrefixCache::holders(int32_t page) const {
  return pool_.references(page) - (at(page).cached ? 1 : 0);
}

uint64_t PrefixCache::hash_after(int32_t parent, std::string_view salt,
                                 std::span<const int32_t> ids) const {
  if (parent != kNoPage) return hash_(at(parent).hash, ids);
  uint64_t root = 0;
  for (const char c : salt) {
    const int32_t byte = static_cast<uint8_t>(c);
    root = hash_(root, {&byte, 1});
  }
  return hash_(root, ids);
}

int32_t PrefixCache::find(uint64_t hash, int32_t parent, std::string_view salt,
                          std::span<const int32_t> ids) const {
  int32_t page = buckets_[hash & (buckets_.size() - 1)];
  for (; page != kNoPage; page = at(page).bucket_next) {
    const Entry& entry = at(page);
    if (entry.hash != hash || entry.parent != parent) continue;
    if (parent == kNoPage && entry.salt != salt) continue;
    if (std::equal(ids.begin(), ids.end(), ids_of(page).begin())) return page;
  }
  return kNoPage;
}

std::span<int32_t> PrefixCache::ids_of(int32_t page) {
  const auto page_tokens = static_cast<size_t>(page_tokens_);
  return std::span(ids_).subspan(static_cast<size_t>(page) * page_tokens, page_tokens);
}
std::span<const int32_t> PrefixCache::ids_of(int32_t page) const {
  return const_cast<PrefixCache*>(this)->ids_of(page);
}

void PrefixCache::make_idle(int32_t page) {
  Entry& entry = at(page);
  entry.idle = true;
  entry.older = newest_;
  entry.newer = kNoPage;
  (newest_ == kNoPage ? oldest_ : at(newest_).newer) = page;
  newest_ = page;
  ++idle_count_;
}

void PrefixCache::make_held(int32_t page) {
  Entry& entry = at(page);
  entry.idle = false;
  (entry.older == kNoPage ? oldest_ : at(entry.older).newer) = entry.newer;
  (entry.newer == kNoPage ? newest_ : at(entry.newer).older) = entry.older;
  --idle_count_;
}

void PrefixCache::evict_oldest() {
  const int32_t page = oldest_;
  Entry& entry = at(page);
  UPDRAFT_CHECK(entry.child_count == 0, "a page outlives its children");
  make_held(page);
  int32_t* link = &bucket(entry.hash);
  while (*link != page) link = &at(*link).bucket_next;
  *link = entry.bucket_next;
  if (entry.parent != kNoPage) --at(entry.parent).child_count;
  entry = Entry();
  pool_.release(page);
  ++evictions_;
}

}  // namespace updraft
