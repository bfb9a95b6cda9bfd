// The table of choices and its text.
#include "kernels/cuda/gemm_device.h"

#include <bit>
#include <charconv>
#include <cstdio>
#include <utility>
#include <vector>

#include "kernels/cuda/warpgroup_gemm.h"

namespace updraft::cuda {
namespace {

int32_t next_power_of_two(int32_t tokens) {
  int32_t out = 1;
  while (out < tokens && out < (1 << 30)) out *= 2;
  return out;
}

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> out;
  while (!line.empty()) {
    const size_t end = line.find(' ');
    const std::string_view word = line.substr(0, end);
    if (!word.empty()) out.push_back(word);
    line = end == std::string_view::npos ? std::string_view() : line.substr(end + 1);
  }
  return out;
}

template <typename T>
bool parse(std::string_view word, int base, T* out) {
  const auto end = word.data() + word.size();
  const auto result = std::from_chars(word.data(), end, *out, base);
  return result.ec == std::errc() && result.ptr == end;
}

// "<format> <rows> <cols> <tokens> tile", "... warpgroup", "... warpgroup <splits>" or "... cublas
// <8 words in hexadecimal>"
bool parse_choice(std::string_view line, std::string* key, WideChoice* choice) {
  const std::vector<std::string_view> words = words_of(line);
  if (words.size() != 5 && words.size() != 6 && words.size() != 13) return false;
  for (size_t i = 1; i < 4; ++i) {
    int64_t number = 0;
    if (!parse(words[i], 10, &number) || number < 1) return false;
  }
  *key = std::string(words[0]);
  for (size_t i = 1; i < 4; ++i) *key += " " + std::string(words[i]);
  if (words.size() == 5) {
    choice->method = words[4] == "warpgroup" ? WideMethod::kWarpgroup : WideMethod::kTile;
    return words[4] == "tile" || words[4] == "warpgroup";
  }
  if (words.size() == 6) {
    choice->method = WideMethod::kWarpgroup;
    return words[4] == "warpgroup" && parse(words[5], 10, &choice->splits) && choice->splits > 1 &&
           choice->splits <= kWarpgroupSplitsMax &&
           std::has_single_bit(static_cast<uint32_t>(choice->splits));
  }
  choice->method = WideMethod::kCublas;
  if (words[4] != "cublas") return false;
  for (size_t i = 0; i < 8; ++i) {
    if (!parse(words[5 + i], 16, &choice->algorithm.words[i])) return false;
  }
  return true;
}

}  // namespace

Result<std::unique_ptr<GemmDevice>> GemmDevice::open(const GemmDeviceFacts& facts,
                                                     std::unique_ptr<Cublas> cublas) {
  if (facts.multiprocessor_count < 1 || facts.capability < 80) {
    return fail("products on a device of " + std::to_string(facts.multiprocessor_count) +
                " multiprocessors with capability " + std::to_string(facts.capability) +
                " (from 1, from 80)");
  }
  std::unique_ptr<GemmDevice> out(new GemmDevice);
  out->facts_ = facts;
  out->cublas_ = std::move(cublas);
  return out;
}

std::string GemmDevice::choice_key(const PackedLayout& layout, int32_t tokens) {
  return std::string(dtype_info(layout.type).name) + " " + std::to_string(layout.rows) + " " +
         std::to_string(layout.cols) + " " + std::to_string(next_power_of_two(tokens));
}

bool GemmDevice::has(WideMethod method, DType type) const {
  switch (method) {
    case WideMethod::kTile:
      return true;
    case WideMethod::kCublas:
      return cublas_ != nullptr;
    case WideMethod::kWarpgroup:
      return warpgroup_ && type != DType::kI8;
  }
  return false;
}

WideChoice GemmDevice::choice(const PackedLayout& layout, int32_t tokens) const {
  if (batch_invariant_) return {};
  const auto found = choices_.find(choice_key(layout, tokens));
  if (found != choices_.end() && has(found->second.method, layout.type)) return found->second;
  return {cublas_ != nullptr ? WideMethod::kCublas : WideMethod::kTile, {}};
}

void GemmDevice::set_choice(const PackedLayout& layout, int32_t tokens, const WideChoice& choice) {
  choices_[choice_key(layout, tokens)] = choice;
}

void GemmDevice::refuse_cublas(const PackedLayout& layout, int32_t tokens, const std::string& why) {
  set_choice(layout, tokens, {WideMethod::kTile, {}});
  if (refusal_.empty()) refusal_ = why;
}

std::string GemmDevice::choices_text() const {
  std::string out;
  for (const auto& [key, choice] : choices_) {
    out += key + (choice.method == WideMethod::kTile        ? " tile"
                  : choice.method == WideMethod::kWarpgroup ? " warpgroup"
                                                            : " cublas");
    if (choice.method == WideMethod::kCublas) {
      for (const uint64_t word : choice.algorithm.words) {
        char text[20];
        std::snprintf(text, sizeof text, " %llx", static_cast<unsigned long long>(word));
        out += text;
      }
    }
    if (choice.method == WideMethod::kWarpgroup && choice.splits > 1) {
      out += " " + std::to_string(choice.splits);
    }
    out += "\n";
  }
  return out;
}

Result<void> GemmDevice::set_choices_text(std::string_view text) {
  std::map<std::string, WideChoice> read;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (line.empty()) continue;
    std::string key;
    WideChoice choice;
    if (!parse_choice(line, &key, &choice)) {
      return fail("choices of products: line " + std::to_string(number) + " is none: '" +
                  std::string(line.substr(0, 80)) + "'");
    }
    read[key] = choice;
  }
  choices_ = std::move(read);
  return {};
}

}  // namespace updraft::cuda
