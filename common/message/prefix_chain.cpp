// See the header. The mixing step is the folded 64 x 64 -> 128 bit product of Wang Yi's wyhash
// (https://github.com/wangyi-fudan/wyhash, public domain).
#include "common/message/prefix_chain.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "common/base/check.h"

namespace updraft {
namespace {

constexpr size_t kBlocksPerSize = 32;
constexpr int64_t kFirstBlockBytes = 512;
constexpr uint64_t kFactor = 0x9E3779B97F4A7C15ULL;
constexpr uint64_t kSeed = 0x2D358DCCAA6C78A5ULL;

// What stands between the parts of a prompt. A text may hold these bytes too: it then shares its
// name with another prompt, which costs no more than any collision.
constexpr char kMessageMark = 1;
constexpr char kTextMark = 2;
constexpr char kImageMark = 3;

int64_t block_bytes(size_t index) { return kFirstBlockBytes << (index / kBlocksPerSize); }

uint64_t mix(uint64_t hash, uint64_t word) {
  const auto product = static_cast<unsigned __int128>(hash ^ word) * kFactor;
  const uint64_t folded = static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  return folded ^ hash << 7;  // a word equal to the hash does not wipe out what came before
}

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = mix(kSeed, bytes.size());
  while (!bytes.empty()) {
    uint64_t word = 0;
    const size_t size = std::min(bytes.size(), sizeof word);
    std::memcpy(&word, bytes.data(), size);
    hash = mix(hash, word);
    bytes.remove_prefix(size);
  }
  return hash;
}

class ChainBuilder {
 public:
  explicit ChainBuilder(uint64_t salt) : hash_(salt) {}

  void add(std::string_view bytes) {
    while (!bytes.empty() && chain_.size() < kPrefixBlocksMax) {
      const size_t room = sizeof word_ - filled_;
      const size_t size = std::min(bytes.size(), room);
      std::memcpy(reinterpret_cast<char*>(&word_) + filled_, bytes.data(), size);
      filled_ += size;
      bytes.remove_prefix(size);
      if (filled_ < sizeof word_) return;
      take_word();
    }
  }
  void add(char mark) { add(std::string_view(&mark, 1)); }
  void add(uint64_t value) {
    add(std::string_view(reinterpret_cast<const char*>(&value), sizeof value));
  }
  std::vector<uint64_t> take() { return std::move(chain_); }

 private:
  void take_word() {
    hash_ = mix(hash_, word_);
    word_ = 0;
    filled_ = 0;
    block_filled_ += sizeof word_;
    if (block_filled_ < block_bytes(chain_.size())) return;
    block_filled_ = 0;
    chain_.push_back(std::max<uint64_t>(1, mix(hash_, kSeed)));
  }

  uint64_t hash_;
  uint64_t word_ = 0;
  size_t filled_ = 0;  // bytes of word_
  int64_t block_filled_ = 0;
  std::vector<uint64_t> chain_;
};

}  // namespace

int64_t prefix_block_end(size_t index) {
  UPDRAFT_CHECK(index < kPrefixBlocksMax);
  int64_t end = 0;
  for (size_t i = 0; i < index / kBlocksPerSize; ++i)
    end += block_bytes(i * kBlocksPerSize) * static_cast<int64_t>(kBlocksPerSize);
  return end + block_bytes(index) * static_cast<int64_t>(index % kBlocksPerSize + 1);
}

std::vector<uint64_t> prefix_chain(const Request& request) {
  ChainBuilder chain(mix(hash_bytes(request.tenant), hash_bytes(request.model)));
  if (request.kind == Request::Kind::kChat) {
    for (const ChatMessage& message : request.messages) {
      chain.add(kMessageMark);
      chain.add(std::string_view(message.role == "developer" ? "system" : message.role));
      for (const ContentPart& part : message.parts) {
        if (part.kind == ContentPart::Kind::kText) {
          chain.add(kTextMark);
          chain.add(std::string_view(part.text));
        } else {
          chain.add(kImageMark);
          chain.add(
              hash_bytes({reinterpret_cast<const char*>(part.bytes.data()), part.bytes.size()}));
        }
      }
    }
  } else if (!request.prompts.empty()) {
    chain.add(std::string_view(request.prompts.front()));
  } else if (!request.prompt_ids.empty()) {
    const std::vector<int32_t>& ids = request.prompt_ids.front();
    chain.add(
        std::string_view(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(ids[0])));
  }
  return chain.take();
}

}  // namespace updraft
