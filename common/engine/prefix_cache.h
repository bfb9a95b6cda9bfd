// KV pages that remember what they hold: the pool (pages.h) and an index of its full pages by
// content, so that a prompt whose beginning was computed before takes those pages instead of
// computing them again. Owned by the engine thread, inside the scheduler; pure.
//
// K and V of a page follow from its own tokens and all tokens before it, so a page is named by its
// parent page and its own ids; a prefix is a path from a root, and each tenant (salt) has a root of
// its own. A hash chained along the path finds candidates; then parent, ids and salt themselves are
// compared, so that a collision costs time and never hands out somebody else's page.
//
// Two rules of the holders make the order of eviction simple. Who holds a page holds its parents
// too; and who lets a path go does so last page first. So among the pages that nobody holds any
// more, kept in the order in which they were let go, a child always lies before its parent: the
// oldest is the least recently used and has no child left.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/engine/pages.h"

namespace updraft {

inline constexpr int32_t kNoPage = -1;  // as a parent: the root

// The hash of a path that goes on with `ids`; `before` is the hash of the path so far.
using PrefixHash = uint64_t (*)(uint64_t before, std::span<const int32_t> ids);
uint64_t hash_prefix(uint64_t before, std::span<const int32_t> ids);

class PrefixCache {
 public:
  // Pages 0 .. page_count - 1, all free. Both > 0. The hash is a parameter so that tests can make
  // it collide.
  PrefixCache(int32_t page_count, int32_t page_tokens, PrefixHash hash = hash_prefix);

  // A page for the caller alone: a free one, else the least recently used of the cached pages that
  // nobody holds, which is forgotten. Nothing when all pages are held.
  std::optional<int32_t> take();
  // One more holder of a held or cached page.
  void retain(int32_t page);
  // One holder less. Without holders a cached page waits to be found or evicted; any other is free.
  void release(int32_t page);

  // The longest run of cached pages after `parent` (a page of the same tenant's path, or kNoPage)
  // that holds ids' full pages in their order. Retains none.
  std::vector<int32_t> match(int32_t parent, std::string_view salt,
                             std::span<const int32_t> ids) const;
  // `page`, which the caller holds alone, is full: `ids` [page_tokens] after `parent`, and is never
  // written again. Returns the page to go on with: `page`, cached from now on, or the one that
  // holds the same already, retained for the caller in place of `page`.
  int32_t add(int32_t page, int32_t parent, std::string_view salt, std::span<const int32_t> ids);

  // Holders besides the cache itself.
  int32_t holders(int32_t page) const;
  bool cached(int32_t page) const { return at(page).cached; }
  int32_t page_count() const { return pool_.page_count(); }
  // Pages that take() can give: free ones, and cached ones that nobody holds.
  int32_t available_count() const { return pool_.free_count() + idle_count_; }
  // The cached ones among them.
  int32_t idle_count() const { return idle_count_; }
  int64_t evictions() const { return evictions_; }

 private:
  struct Entry {
    bool cached = false;
    bool idle = false;  // cached, and nobody holds it
    uint64_t hash = 0;
    int32_t parent = kNoPage;
    int32_t child_count = 0;
    int32_t bucket_next = kNoPage;
    int32_t older = kNoPage;  // neighbours among the idle ones
    int32_t newer = kNoPage;
    std::string salt;  // of first pages; the others inherit it from their parent
  };

  const Entry& at(int32_t page) const { return entries_[static_cast<size_t>(page)]; }
  Entry& at(int32_t page) { return entries_[static_cast<size_t>(page)]; }
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  uint64_t hash_after(int32_t parent, std::string_view salt, std::span<const int32_t> ids) const;
  int32_t find(uint64_t hash, int32_t parent, std::string_view salt,
               std::span<const int32_t> ids) const;
  std::span<int32_t> ids_of(int32_t page);
  std::span<const int32_t> ids_of(int32_t page) const;
  void make_idle(int32_t page);
  void make_held(int32_t page);
  void evict_oldest();

  const int32_t page_tokens_;
  const PrefixHash hash_;
  PagePool pool_;                 // the cache is one of the holders of a cached page
  std::vector<Entry> entries_;    // [page_count]
  std::vector<int32_t> ids_;      // [page_count, page_tokens] of cached pages
  std::vector<int32_t> buckets_;  // first page of each chain; a power of two of them
  int32_t oldest_ = kNoPage;      // the idle pages, a list through older and newer
  int32_t newest_ = kNoPage;
  int32_t idle_count_ = 0;
  int64_t evictions_ = 0;
};

}  // namespace updraft
