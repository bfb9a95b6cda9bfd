// The KV page pool's bookkeeping: which page belongs to how many holders. Owned by the engine
// thread, inside the scheduler. The idea: a page is a number; its memory lives in the backend.
// Counting references (instead of one owner) is what lets several sequences hold one page.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace updraft {

class PagePool {
 public:
  // Pages 0 .. page_count - 1, all free. page_count > 0.
  explicit PagePool(int32_t page_count);

  // A free page, now with one reference; nothing when all are held. The most recently freed comes
  // first: its memory is the likeliest to be in a cache still.
  std::optional<int32_t> take();
  // One more holder of a held page.
  void retain(int32_t page);
  // One holder less; at zero the page is free.
  void release(int32_t page);

  int32_t references(int32_t page) const;
  int32_t page_count() const { return static_cast<int32_t>(references_.size()); }
  int32_t free_count() const { return static_cast<int32_t>(free_.size()); }

 private:
  std::vector<int32_t> references_;  // [page_count]
  std::vector<int32_t> free_;        // a stack
};

}  // namespace updraft
