// The prefix cache: named situations, then random paths of several tenants against a map from whole
// prefixes to pages, with hashes from good to constant.
#include "common/engine/prefix_cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

using namespace updraft;

namespace {

uint64_t always_7(uint64_t, std::span<const int32_t>) { return 7; }
uint64_t two_bits(uint64_t before, std::span<const int32_t> ids) {
  return hash_prefix(before, ids) & 3;
}

// Fills pages with `ids` as a sequence would: what is cached is taken, the rest is added.
std::vector<int32_t> hold(PrefixCache& cache, const std::string& salt,
                          const std::vector<int32_t>& ids, int32_t page_tokens) {
  std::vector<int32_t> path = cache.match(kNoPage, salt, ids);
  for (const int32_t page : path) cache.retain(page);
  const auto size = static_cast<size_t>(page_tokens);
  while ((path.size() + 1) * size <= ids.size()) {
    const auto own = std::span(ids).subspan(path.size() * size, size);
    const auto page = cache.take();
    REQUIRE(page.has_value());
    path.push_back(cache.add(*page, path.empty() ? kNoPage : path.back(), salt, own));
  }
  return path;
}

void let_go(PrefixCache& cache, const std::vector<int32_t>& path) {
  for (auto page = path.rbegin(); page != path.rend(); ++page) cache.release(*page);
}

}  // namespace

TEST_CASE("full pages are found by what they hold and by all that lies before them") {
  PrefixCache cache(8, 2);
  const auto path = hold(cache, "", {1, 2, 3, 4, 5, 6}, 2);
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{1, 2, 3, 4, 5, 6}) == path);
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{1, 2, 3, 4, 5}).size() == 2);  // half a page
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{1, 2, 9, 4, 5, 6}).size() == 1);
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{3, 4, 5, 6}).empty());  // not at the front
  CHECK(cache.match(path[0], "", std::vector<int32_t>{3, 4, 5, 6}).size() == 2);
  CHECK(cache.match(path[1], "", std::vector<int32_t>{3, 4}).empty());
}

TEST_CASE("one tenant's pages are not another's, even when every hash is the same") {
  for (const PrefixHash hash : {&hash_prefix, &always_7}) {
    PrefixCache cache(8, 2, hash);
    const std::vector<int32_t> ids = {1, 2, 3, 4};
    const auto path = hold(cache, "alice", ids, 2);
    CHECK(cache.match(kNoPage, "bob", ids).empty());
    CHECK(cache.match(kNoPage, "", ids).empty());
    const auto other = hold(cache, "bob", ids, 2);
    CHECK(other != path);
    CHECK(cache.match(kNoPage, "alice", ids) == path);
    CHECK(cache.match(kNoPage, "bob", ids) == other);
  }
}

TEST_CASE("pages whose hashes collide are told apart by ids and parent") {
  PrefixCache cache(8, 2, always_7);
  const auto one = hold(cache, "", {1, 2, 3, 4}, 2);
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{1, 3}).empty());
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{3, 4}).empty());  // there, but as a child
  const auto two = hold(cache, "", {5, 6, 3, 4}, 2);
  CHECK(one[1] != two[1]);  // the same ids after other ones
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{5, 6, 3, 4}) == two);
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{1, 2, 3, 4}) == one);
}

TEST_CASE("who computes what is there already goes on with the page that is there") {
  PrefixCache cache(4, 2);
  const std::vector<int32_t> ids = {1, 2};
  const int32_t first = *cache.take();
  const int32_t second = *cache.take();
  CHECK(cache.add(first, kNoPage, "", ids) == first);
  CHECK(cache.add(second, kNoPage, "", ids) == first);
  CHECK(cache.holders(first) == 2);
  CHECK(cache.holders(second) == 0);
  CHECK(cache.available_count() == 3);  // the second page is free
}

TEST_CASE("the least recently used go first, children before their parents") {
  PrefixCache cache(4, 1);
  const auto old = hold(cache, "", {1, 2}, 1);
  const auto recent = hold(cache, "", {7, 8}, 1);
  CHECK(cache.available_count() == 0);
  CHECK_FALSE(cache.take().has_value());
  let_go(cache, old);
  let_go(cache, recent);
  CHECK(cache.idle_count() == 4);
  let_go(cache, hold(cache, "", {1, 2}, 1));  // used again: now the newest
  for (const int32_t expected : {recent[1], recent[0], old[1], old[0]})
    CHECK(cache.take() == expected);
  CHECK(cache.evictions() == 4);
  CHECK(cache.match(kNoPage, "", std::vector<int32_t>{1}).empty());
}

TEST_CASE("free pages are given before a cached one is forgotten") {
  PrefixCache cache(3, 1);
  let_go(cache, hold(cache, "", {1}, 1));
  CHECK(cache.take().has_value());
  CHECK(cache.take().has_value());
  CHECK(cache.evictions() == 0);
  CHECK(cache.take().has_value());
  CHECK(cache.evictions() == 1);
}

namespace {

using Prefix = std::pair<std::string, std::vector<int32_t>>;  // salt, all ids up to the page's end

// What the cache must know: a map and stamps, no chains, no hashes, no lists.
struct Model {
  std::map<Prefix, int32_t> pages;
  std::map<int32_t, int64_t> let_go;  // page -> when its last holder left
  std::map<int32_t, int32_t> holders;
  int64_t now = 0;

  std::vector<int32_t> longest(const std::string& salt, const std::vector<int32_t>& ids,
                               size_t page_tokens) const {
    std::vector<int32_t> out;
    for (size_t end = page_tokens; end <= ids.size(); end += page_tokens) {
      const auto found =
          pages.find({salt, {ids.begin(), ids.begin() + static_cast<ptrdiff_t>(end)}});
      if (found == pages.end()) break;
      out.push_back(found->second);
    }
    return out;
  }
  bool has_child(const Prefix& prefix) const {
    return std::any_of(pages.begin(), pages.end(), [&](const auto& entry) {
      const auto& [salt, ids] = entry.first;
      return salt == prefix.first && ids.size() > prefix.second.size() &&
             std::equal(prefix.second.begin(), prefix.second.end(), ids.begin());
    });
  }
  // The cached page without holders that was let go first.
  std::map<Prefix, int32_t>::const_iterator oldest() const {
    auto best = pages.end();
    for (auto entry = pages.begin(); entry != pages.end(); ++entry) {
      if (holders.contains(entry->second)) continue;
      if (best == pages.end() || let_go.at(entry->second) < let_go.at(best->second)) best = entry;
    }
    return best;
  }
};

}  // namespace

TEST_CASE("random paths of several tenants agree with a map from prefixes to pages") {
  int64_t evictions = 0;
  int64_t hits = 0;
  int64_t duplicates = 0;
  for (uint32_t seed = 1; seed <= 120; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](int32_t low, int32_t high) {
      return low + static_cast<int32_t>(random() % static_cast<uint32_t>(high - low + 1));
    };
    const int32_t page_count = pick(1, 30);
    const int32_t page_tokens = pick(1, 4);
    const auto size = static_cast<size_t>(page_tokens);
    const PrefixHash hash = std::vector<PrefixHash>{hash_prefix, two_bits, always_7}[seed % 3];
    PrefixCache cache(page_count, page_tokens, hash);
    Model model;
    struct Path {
      std::string salt;
      std::vector<int32_t> ids;
      std::vector<int32_t> pages;
    };
    std::vector<Path> paths;
    int32_t free = page_count;

    const auto release = [&](const Path& path) {
      for (size_t i = path.pages.size(); i-- > 0;) {
        const int32_t page = path.pages[i];
        cache.release(page);
        if (--model.holders.at(page) > 0) continue;
        model.holders.erase(page);
        model.let_go[page] = ++model.now;
      }
    };
    const auto check_counts = [&] {
      REQUIRE(cache.available_count() == page_count - static_cast<int32_t>(model.holders.size()));
      REQUIRE(cache.idle_count() == cache.available_count() - free);
      for (const auto& [page, count] : model.holders) REQUIRE(cache.holders(page) == count);
      for (const auto& [prefix, page] : model.pages) REQUIRE(cache.cached(page));
    };

    for (int step = 0; step < 400; ++step) {
      if (!paths.empty() && pick(0, 2) == 0) {
        const auto victim = paths.begin() + pick(0, static_cast<int32_t>(paths.size()) - 1);
        release(*victim);
        paths.erase(victim);
        check_counts();
        continue;
      }
      Path path;
      path.salt = std::string(static_cast<size_t>(pick(0, 2)), 'x');
      const int32_t length = pick(0, 8) * page_tokens + pick(0, page_tokens - 1);
      for (int32_t i = 0; i < length; ++i)
        path.ids.push_back(pick(0, i % page_tokens == 0 ? 2 : 0));
      const auto expected = model.longest(path.salt, path.ids, size);
      REQUIRE(cache.match(kNoPage, path.salt, path.ids) == expected);
      // Now and then it computes again what is there: two that began side by side.
      const size_t used = pick(0, 4) == 0 ? 0 : expected.size();
      for (size_t i = 0; i < used; ++i) {
        cache.retain(expected[i]);
        ++model.holders[expected[i]];
        path.pages.push_back(expected[i]);
      }
      hits += static_cast<int64_t>(used);
      while ((path.pages.size() + 1) * size <= path.ids.size()) {
        const auto oldest = model.oldest();
        const auto page = cache.take();
        REQUIRE(page.has_value() == (free > 0 || oldest != model.pages.end()));
        if (!page) break;
        REQUIRE_FALSE(model.holders.contains(*page));
        if (free > 0) {
          --free;
        } else {
          REQUIRE(*page == oldest->second);
          REQUIRE_FALSE(model.has_child(oldest->first));
          model.pages.erase(oldest);
          ++evictions;
        }
        const size_t begin = path.pages.size() * size;
        const auto own = std::span(path.ids).subspan(begin, size);
        const Prefix whole = {
            path.salt, {path.ids.begin(), path.ids.begin() + static_cast<ptrdiff_t>(begin + size)}};
        const int32_t parent = path.pages.empty() ? kNoPage : path.pages.back();
        const int32_t kept = cache.add(*page, parent, path.salt, own);
        const auto [entry, is_new] = model.pages.emplace(whole, *page);
        REQUIRE(kept == entry->second);
        if (!is_new) {
          ++free;
          ++duplicates;
        }
        ++model.holders[kept];
        path.pages.push_back(kept);
      }
      paths.push_back(std::move(path));
      check_counts();
    }
    for (const Path& path : paths) release(path);
    REQUIRE(model.holders.empty());
    CHECK(cache.available_count() == page_count);
    for (int32_t page = 0; page < page_count; ++page) CHECK(cache.holders(page) == 0);
  }
  // The paths met often enough to mean something.
  CHECK(evictions > 3000);
  CHECK(hits > 3000);
  CHECK(duplicates > 200);
}
