// The page pool: a stack of free pages and a count per page. Every misuse (double release, foreign
// page) aborts, because it means that two sequences could write one page.
#include "common/engine/pages.h"

#include <cstddef>

#include "common/base/check.h"

namespace updraft {

PagePool::PagePool(int32_t page_count) {
  UPDRAFT_CHECK(page_count > 0, "a pool without pages serves nothing");
  references_.assign(static_cast<size_t>(page_count), 0);
  free_.reserve(references_.size());
  for (int32_t page = page_count - 1; page >= 0; --page) free_.push_back(page);
}

std::optional<int32_t> PagePool::take() {
  if (free_.empty()) return std::nullopt;
  const int32_t page = free_.back();
  free_.pop_back();
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::retain(int32_t page) {
  UPDRAFT_CHECK(references(page) > 0, "only a held page can get another holder");
  ++references_[static_cast<size_t>(page)];
}

void PagePool::release(int32_t page) {
  UPDRAFT_CHECK(references(page) > 0, "a free page was released");
  if (--references_[static_cast<size_t>(page)] == 0) free_.push_back(page);
}

int32_t PagePool::references(int32_t page) const {
  UPDRAFT_CHECK(page >= 0 && page < page_count(), "no such page");
  return references_[static_cast<size_t>(page)];
}

}  // namespace updraft
