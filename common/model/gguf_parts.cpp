// Models split into several GGUF files: "name-00001-of-00003.gguf" with the keys split.count,
// split.no and (in the first part) split.tensors.count, as llama.cpp's gguf-split writes them.
#include <cstdio>

#include "common/model/gguf.h"

namespace updraft {
namespace {

constexpr int64_t kPartsMax = 99999;  // five digits in the name

std::optional<int64_t> integer_key(const GgufFile& file, const char* key) {
  const GgufValue* value = file.find_key(key);
  return value == nullptr ? std::nullopt : value->integer();
}

std::string part_suffix(int64_t index, int64_t count) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "-%05d-of-%05d.gguf", static_cast<int>(index + 1),
                static_cast<int>(count));
  return buffer;
}

}  // namespace

Result<std::vector<std::shared_ptr<const GgufFile>>> open_gguf_parts(const std::string& path) {
  auto given = GgufFile::open(path);
  if (!given) return given.error();
  const GgufValue* split = (*given)->find_key("split.count");
  const int64_t count = split == nullptr ? 1 : split->integer().value_or(-1);
  if (count == 0 || count == 1) return std::vector{*given};
  const int64_t given_index = integer_key(**given, "split.no").value_or(-1);
  if (count < 0 || count > kPartsMax || given_index < 0 || given_index >= count) {
    return fail(path + ": keys split.no " + std::to_string(given_index) + " and split.count " +
                split->describe() + " make no sense");
  }
  const std::string suffix = part_suffix(given_index, count);
  if (!path.ends_with(suffix)) {
    return fail(path + ": is part " + std::to_string(given_index + 1) + " of " +
                std::to_string(count) +
                " by its keys split.no and split.count, then its name must end in " + suffix);
  }
  const std::string stem = path.substr(0, path.size() - suffix.size());

  std::vector<std::shared_ptr<const GgufFile>> parts;
  uint64_t tensor_count = 0;
  for (int64_t i = 0; i < count; ++i) {
    auto part = i == given_index ? std::move(given) : GgufFile::open(stem + part_suffix(i, count));
    if (!part) return part.error("part " + std::to_string(i + 1) + " of " + std::to_string(count));
    const GgufFile& file = **part;
    const auto index_key = integer_key(file, "split.no");
    const auto count_key = integer_key(file, "split.count");
    if (index_key != i || count_key != count) {
      return fail(file.path() + ": keys split.no " + std::to_string(index_key.value_or(-1)) +
                  " and split.count " + std::to_string(count_key.value_or(-1)) + ", expected " +
                  std::to_string(i) + " and " + std::to_string(count));
    }
    tensor_count += file.tensors().size();
    parts.push_back(std::move(*part));
  }
  const auto total = integer_key(*parts.front(), "split.tensors.count");
  if (total && *total != static_cast<int64_t>(tensor_count)) {
    return fail(parts.front()->path() + ": key split.tensors.count is " + std::to_string(*total) +
                ", the parts have " + std::to_string(tensor_count) + " tensors");
  }
  return parts;
}

}  // namespace updraft
