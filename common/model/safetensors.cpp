// Parsing of safetensors. Checks follow the reference implementation (huggingface/safetensors,
// tensor.rs).
#include "common/model/safetensors.h"

#include <algorithm>
#include <numeric>

#include "common/model/json.h"

namespace updraft {
namespace {

constexpr size_t kDimensionsMax = 8;
constexpr uint64_t kIndexBytesMax = 64 << 20;

struct Format {
  const char* name;
  uint64_t bytes;
  std::optional<DType> type;
};

const Format* find_format(std::string_view name) {
  static constexpr Format kFormats[] = {
      {"F32", 4, DType::kF32},   {"F16", 2, DType::kF16},      {"BF16", 2, DType::kBF16},
      {"F64", 8, std::nullopt},  {"I64", 8, std::nullopt},     {"I32", 4, std::nullopt},
      {"I16", 2, std::nullopt},  {"I8", 1, std::nullopt},      {"U64", 8, std::nullopt},
      {"U32", 4, std::nullopt},  {"U16", 2, std::nullopt},     {"U8", 1, std::nullopt},
      {"BOOL", 1, std::nullopt}, {"F8_E4M3", 1, std::nullopt}, {"F8_E5M2", 1, std::nullopt}};
  for (const Format& format : kFormats) {
    if (name == format.name) return &format;
  }
  return nullptr;
}

Error wrong(const std::string& tensor, const std::string& what) {
  return fail("tensor \"" + printable(tensor) + "\" " + what);
}

// Dimensions, and the bytes they need.
Result<uint64_t> read_shape(const JsonValue* shape, const Format& format,
                            SafetensorsTensor& tensor) {
  const JsonValue::Array* dimensions = shape == nullptr ? nullptr : shape->array();
  if (dimensions == nullptr) return wrong(tensor.name, "has no array \"shape\"");
  if (dimensions->size() > kDimensionsMax) {
    return wrong(tensor.name, "has " + std::to_string(dimensions->size()) +
                                  " dimensions, at most " + std::to_string(kDimensionsMax) +
                                  " are supported");
  }
  uint64_t size = format.bytes;
  for (const JsonValue& dimension : *dimensions) {
    const auto n = dimension.integer();
    if (!n || *n < 0) return wrong(tensor.name, "has the dimension " + dimension.describe());
    const auto product = checked_mul(size, static_cast<uint64_t>(*n));
    if (!product) return wrong(tensor.name, "has dimensions whose product is too large");
    size = *product;
    tensor.shape.push_back(*n);
  }
  return size;
}

struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
};

Result<Extent> read_offsets(const JsonValue* offsets, const std::string& name) {
  const JsonValue::Array* pair = offsets == nullptr ? nullptr : offsets->array();
  if (pair == nullptr || pair->size() != 2) return wrong(name, "has no pair \"data_offsets\"");
  const auto begin = (*pair)[0].integer();
  const auto end = (*pair)[1].integer();
  if (!begin || !end || *begin < 0 || *end < *begin) {
    return wrong(name,
                 "has data_offsets [" + (*pair)[0].describe() + ", " + (*pair)[1].describe() + "]");
  }
  return Extent{static_cast<uint64_t>(*begin), static_cast<uint64_t>(*end)};
}

// One entry of the table. Sets everything but the bytes' place.
Result<Extent> read_entry(const JsonMember& entry, SafetensorsTensor& tensor) {
  tensor.name = entry.key;
  if (tensor.name.empty()) return fail("a tensor has an empty name");
  const JsonValue* type = entry.value.find("dtype");
  if (type == nullptr || type->text() == nullptr)
    return wrong(tensor.name, "has no text \"dtype\"");
  const Format* format = find_format(*type->text());
  if (format == nullptr) return wrong(tensor.name, "has the unknown dtype " + type->describe());
  tensor.type_name = format->name;
  tensor.type = format->type;
  const auto size = read_shape(entry.value.find("shape"), *format, tensor);
  if (!size) return size.error();
  const auto extent = read_offsets(entry.value.find("data_offsets"), tensor.name);
  if (extent && extent->end - extent->begin != *size) {
    return wrong(tensor.name, "has " + std::to_string(extent->end - extent->begin) +
                                  " bytes by its data_offsets, " + std::to_string(*size) +
                                  " by its shape and dtype");
  }
  return extent;
}

// Sorted by offset, each tensor must begin where the one before ended, and the last must end with
// the data.
Result<void> check_cover(const std::vector<SafetensorsTensor>& tensors,
                         const std::vector<Extent>& extents, uint64_t data_bytes) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(extents[a].begin, extents[a].end) <
           std::pair(extents[b].begin, extents[b].end);
  });
  uint64_t expected = 0;
  for (const size_t i : order) {
    if (extents[i].begin != expected) {
      return wrong(tensors[i].name, "begins at byte " + std::to_string(extents[i].begin) +
                                        " of the data, expected " + std::to_string(expected) +
                                        " (no holes, no overlap)");
    }
    expected = extents[i].end;
    if (expected > data_bytes) {
      return wrong(tensors[i].name, "ends at byte " + std::to_string(expected) +
                                        " of the data, the file has " + std::to_string(data_bytes));
    }
  }
  if (expected != data_bytes) {
    return fail("the tensors end at byte " + std::to_string(expected) +
                " of the data, the file has " + std::to_string(data_bytes));
  }
  return {};
}

}  // namespace

Result<void> SafetensorsFile::read(ByteView bytes) {
  bytes_ = bytes;
  if (bytes.size() < 8)
    return fail("ends at byte " + std::to_string(bytes.size()) + " inside the header's length");
  const auto header_bytes = load_le<uint64_t>(bytes.data());
  if (header_bytes > kSafetensorsHeaderBytesMax || header_bytes > bytes.size() - 8) {
    return fail("claims a header of " + std::to_string(header_bytes) + " bytes, the file has " +
                std::to_string(bytes.size() - 8) + " left and at most " +
                std::to_string(kSafetensorsHeaderBytesMax) + " are read");
  }
  header_ = bytes.subspan(8, header_bytes);
  if (header_.empty() || header_[0] != std::byte{'{'})
    return fail("its header does not begin with {");
  const auto table = parse_json(as_text(header_));
  if (!table) return table.error("header");

  const ByteView data = bytes.subspan(8 + header_bytes);
  std::vector<Extent> extents;
  for (const JsonMember& entry : *table->object()) {
    if (entry.key == "__metadata__") continue;
    SafetensorsTensor tensor;
    const auto extent = read_entry(entry, tensor);
    if (!extent) return extent.error();
    extents.push_back(*extent);
    tensors_.push_back(std::move(tensor));
  }
  const auto covered = check_cover(tensors_, extents, data.size());
  if (!covered) return covered;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].bytes = data.subspan(extents[i].begin, extents[i].end - extents[i].begin);
  }
  return {};
}

Result<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::open(const std::string& path) {
  auto mapping = MappedFile::open(path);
  if (!mapping) return mapping.error();
  const std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  file->mapping_ = *mapping;
  const auto read = file->read((*mapping)->bytes());
  if (!read) return read.error(path);
  return std::shared_ptr<const SafetensorsFile>(file);
}

Result<std::shared_ptr<const SafetensorsFile>> SafetensorsFile::parse(ByteView bytes,
                                                                      const std::string& path) {
  const std::shared_ptr<SafetensorsFile> file(new SafetensorsFile);
  file->path_ = path;
  const auto read = file->read(bytes);
  if (!read) return read.error(path);
  return std::shared_ptr<const SafetensorsFile>(file);
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const SafetensorsTensor& t, std::string_view n) { return t.name < n; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

Result<std::map<std::string, std::string>> read_safetensors_index(const std::string& path) {
  const auto index = read_json_file(path, kIndexBytesMax);
  if (!index) return index.error();
  const JsonValue* map = index->find("weight_map");
  if (map == nullptr || map->object() == nullptr)
    return fail(path + ": has no object \"weight_map\"");
  std::map<std::string, std::string> out;
  for (const JsonMember& entry : *map->object()) {
    const std::string* file = entry.value.text();
    if (file == nullptr || file->empty() || file->find_first_of("/\\") != std::string::npos ||
        file->find("..") != std::string::npos || file->find('\0') != std::string::npos) {
      return fail(path + ": weight_map sends tensor \"" + printable(entry.key) + "\" to " +
                  entry.value.describe() + ", expected the name of a file beside the index");
    }
    out.emplace(entry.key, *file);
  }
  return out;
}

}  // namespace updraft
