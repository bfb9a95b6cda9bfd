// The page pool against a naive model of who holds what.
#include "common/engine/pages.h"

#include <doctest/doctest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

using namespace updraft;

TEST_CASE("a pool hands out every page once and then says that it is empty") {
  PagePool pool(5);
  std::set<int32_t> taken;
  for (int i = 0; i < 5; ++i) {
    const auto page = pool.take();
    REQUIRE(page.has_value());
    CHECK(*page >= 0);
    CHECK(*page < 5);
    taken.insert(*page);
  }
  CHECK(taken.size() == 5);
  CHECK(pool.free_count() == 0);
  CHECK_FALSE(pool.take().has_value());
}

TEST_CASE("a page is free again only when its last holder lets go") {
  PagePool pool(1);
  const int32_t page = *pool.take();
  pool.retain(page);
  pool.release(page);
  CHECK(pool.references(page) == 1);
  CHECK_FALSE(pool.take().has_value());
  pool.release(page);
  CHECK(pool.free_count() == 1);
  CHECK(*pool.take() == page);
}

TEST_CASE("random takes, retains and releases agree with a map of counts") {
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    const int32_t page_count = 1 + static_cast<int32_t>(random() % 40);
    PagePool pool(page_count);
    std::map<int32_t, int32_t> held;
    for (int step = 0; step < 2000; ++step) {
      const uint32_t action = random() % 3;
      if (action == 0 || held.empty()) {
        const auto page = pool.take();
        REQUIRE(page.has_value() == (static_cast<int32_t>(held.size()) < page_count));
        if (page) REQUIRE(held.emplace(*page, 1).second);  // never a page that somebody holds
      } else {
        auto entry = held.begin();
        std::advance(entry, random() % held.size());
        if (action == 1) {
          pool.retain(entry->first);
          ++entry->second;
        } else {
          pool.release(entry->first);
          if (--entry->second == 0) held.erase(entry);
        }
      }
      REQUIRE(pool.free_count() == page_count - static_cast<int32_t>(held.size()));
    }
    for (const auto& [page, count] : held) CHECK(pool.references(page) == count);
  }
}
