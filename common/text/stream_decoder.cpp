// StreamDecoder: ids to text chunks, whole characters only.
#include "common/text/tokenizer.h"
#include "common/text/utf8.h"

namespace updraft {

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool first_is_start)
    : tokenizer_(std::move(tokenizer)),
      drop_space_(first_is_start && tokenizer_->drops_first_space()) {}

std::string StreamDecoder::push(int32_t id) {
  std::string_view bytes = tokenizer_->piece(id);
  if (bytes.empty()) return {};
  if (drop_space_) {
    drop_space_ = false;
    if (bytes.front() == ' ') bytes.remove_prefix(1);
  }
  pending_ += bytes;
  const size_t held = utf8_incomplete_tail_bytes(pending_);
  std::string text;
  append_utf8_repaired(std::string_view(pending_).substr(0, pending_.size() - held), text);
  pending_.erase(0, pending_.size() - held);
  return text;
}

std::string StreamDecoder::flush() {
  std::string text;
  append_utf8_repaired(pending_, text);
  pending_.clear();
  return text;
}

}  // namespace updraft
