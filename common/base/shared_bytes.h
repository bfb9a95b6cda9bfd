// A read-only view of bytes together with what keeps them there: a string that moved in, a mapped
// piece of a client's shared memory. Copies share the bytes, so a large payload passes through
// queues and threads without being copied, and whoever holds the last copy frees it.
//
// The bytes themselves may still change under a reader when the owner is memory that another
// process can write (a local client's segment). So a reader of such bytes copies what is small and
// decisive before judging it, reads nothing twice that must be the same both times, and takes
// bounds from its own variables only. What a parser walks over (texts, ids) is snapshotted instead.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "common/base/bytes.h"

namespace updraft {

class SharedBytes {
 public:
  SharedBytes() = default;
  // Owns a string's bytes.
  SharedBytes(std::string bytes) {  // NOLINT: implicit on purpose
    auto owned = std::make_shared<const std::string>(std::move(bytes));
    view_ = as_bytes_view(*owned);
    owner_ = std::move(owned);
  }
  SharedBytes(const char* text) : SharedBytes(std::string(text)) {}  // NOLINT: implicit on purpose
  // Bytes that stay where they are as long as `owner` lives.
  SharedBytes(std::shared_ptr<const void> owner, ByteView view)
      : owner_(std::move(owner)), view_(view) {}

  ByteView view() const { return view_; }
  std::string_view text() const { return as_text(view_); }
  const std::byte* data() const { return view_.data(); }
  size_t size() const { return view_.size(); }
  bool empty() const { return view_.empty(); }

  // By content.
  friend bool operator==(const SharedBytes& a, const SharedBytes& b) {
    return a.text() == b.text();
  }

 private:
  std::shared_ptr<const void> owner_;
  ByteView view_;
};

}  // namespace updraft
