// Parsing of GGUF. One cursor walks the file once; every count is checked against the bytes that
// remain before it is used, so a hostile file can neither allocate more than a small multiple of
// its own size nor point outside itself.
#include "common/model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstdio>

namespace updraft {
namespace {

// Smallest encodings: a key-value is length, one name byte, type, one value byte; a tensor record
// is length, one name byte, dimension count, one dimension, type, offset.
constexpr uint64_t kKeyBytesMin = 8 + 1 + 4 + 1;
constexpr uint64_t kTensorRecordBytesMin = 8 + 1 + 4 + 8 + 4 + 8;
constexpr uint32_t kTypeCount = 13;

// Encoded bytes of one scalar; 0 for text and arrays, which carry their length.
constexpr std::array<uint64_t, kTypeCount> kScalarBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

uint64_t scalar_bytes(GgufType type) { return kScalarBytes[static_cast<uint32_t>(type)]; }

std::string quoted(std::string_view text) { return "\"" + printable(text) + "\""; }

// Names of ggml formats that exist but that Updraft does not read, for a message that helps.
const char* foreign_type_name(uint32_t type) {
  switch (type) {
    case 10:
      return "Q2_K";
    case 11:
      return "Q3_K";
    case 15:
      return "Q8_K";
    case 16:
      return "IQ2_XXS";
    case 17:
      return "IQ2_XS";
    case 18:
      return "IQ3_XXS";
    case 19:
      return "IQ1_S";
    case 20:
      return "IQ4_NL";
    case 21:
      return "IQ3_S";
    case 22:
      return "IQ2_S";
    case 23:
      return "IQ4_XS";
    case 24:
      return "I8";
    case 25:
      return "I16";
    case 26:
      return "I32";
    case 27:
      return "I64";
    case 28:
      return "F64";
    case 29:
      return "IQ1_M";
    case 34:
      return "TQ1_0";
    case 35:
      return "TQ2_0";
    case 39:
      return "MXFP4";
    default:
      return nullptr;
  }
}

std::optional<int64_t> load_integer(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::kU8:
      return load_le<uint8_t>(at);
    case GgufType::kI8:
      return load_le<int8_t>(at);
    case GgufType::kU16:
      return load_le<uint16_t>(at);
    case GgufType::kI16:
      return load_le<int16_t>(at);
    case GgufType::kU32:
      return load_le<uint32_t>(at);
    case GgufType::kI32:
      return load_le<int32_t>(at);
    case GgufType::kI64:
      return load_le<int64_t>(at);
    case GgufType::kU64: {
      const auto value = load_le<uint64_t>(at);
      if (value > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> load_number(GgufType type, const std::byte* at) {
  if (type == GgufType::kF32) return load_le<float>(at);
  if (type == GgufType::kF64) return load_le<double>(at);
  return std::nullopt;
}

}  // namespace

const char* gguf_type_name(GgufType type) {
  static constexpr std::array<const char*, kTypeCount> kNames = {
      "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "text", "array", "u64", "i64", "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

std::optional<int64_t> GgufValue::integer() const {
  if (is_array()) return std::nullopt;
  return load_integer(type_, bytes_.data());
}

std::optional<double> GgufValue::number() const {
  if (is_array()) return std::nullopt;
  return load_number(type_, bytes_.data());
}

std::optional<bool> GgufValue::boolean() const {
  if (type_ != GgufType::kBool) return std::nullopt;
  return load_le<uint8_t>(bytes_.data()) != 0;
}

std::optional<std::string_view> GgufValue::text() const {
  if (type_ != GgufType::kText) return std::nullopt;
  return as_text(bytes_.subspan(8));
}

std::optional<std::vector<int64_t>> GgufValue::integers() const {
  const uint64_t step = scalar_bytes(element_type_);
  if (!is_array() || element_type_ == GgufType::kBool || step == 0) return std::nullopt;
  std::vector<int64_t> out;
  out.reserve(count_);
  const std::byte* at = bytes_.data() + 12;
  for (uint64_t i = 0; i < count_; ++i, at += step) {
    const auto value = load_integer(element_type_, at);
    if (!value) return std::nullopt;
    out.push_back(*value);
  }
  return out;
}

std::optional<std::vector<float>> GgufValue::numbers() const {
  if (!is_array()) return std::nullopt;
  if (element_type_ != GgufType::kF32 && element_type_ != GgufType::kF64) return std::nullopt;
  const uint64_t step = scalar_bytes(element_type_);
  std::vector<float> out;
  out.reserve(count_);
  const std::byte* at = bytes_.data() + 12;
  for (uint64_t i = 0; i < count_; ++i, at += step) {
    out.push_back(static_cast<float>(*load_number(element_type_, at)));
  }
  return out;
}

std::optional<std::vector<std::string_view>> GgufValue::texts() const {
  if (!is_array() || element_type_ != GgufType::kText) return std::nullopt;
  std::vector<std::string_view> out;
  out.reserve(count_);
  ByteView rest = bytes_.subspan(12);
  for (uint64_t i = 0; i < count_; ++i) {  // lengths were checked on reading
    const auto length = load_le<uint64_t>(rest.data());
    out.push_back(as_text(rest.subspan(8, length)));
    rest = rest.subspan(8 + length);
  }
  return out;
}

std::string GgufValue::describe() const {
  if (is_array()) {
    return "array of " + std::to_string(count_) + " " + gguf_type_name(element_type_);
  }
  const std::string prefix = std::string(gguf_type_name(type_)) + " ";
  if (const auto value = text()) return prefix + quoted(*value);
  if (const auto value = boolean()) return prefix + (*value ? "true" : "false");
  if (const auto value = integer()) return prefix + std::to_string(*value);
  if (type_ == GgufType::kU64) return prefix + std::to_string(load_le<uint64_t>(bytes_.data()));
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, "%.9g", *number());
  return prefix + buffer;
}

const GgufValue* GgufFile::find_key(std::string_view name) const {
  const auto found = key_index_.find(name);
  return found == key_index_.end() ? nullptr : &keys_[found->second].value;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

Result<std::string> GgufFile::architecture() const {
  const GgufValue* value = find_key("general.architecture");
  if (value == nullptr) return fail(path_ + ": key general.architecture is missing");
  const auto text = value->text();
  if (!text) {
    return fail(path_ + ": key general.architecture is " + value->describe() + ", expected text");
  }
  return std::string(*text);
}

// Walks the bytes once. Each method that reads reports failure by leaving error_ set; the first one
// wins.
class GgufParser {
 public:
  GgufParser(ByteView bytes, std::string path) : file_(new GgufFile) {
    file_->bytes_ = bytes;
    file_->path_ = std::move(path);
  }

  Result<std::shared_ptr<const GgufFile>> run(std::shared_ptr<const MappedFile> mapping) {
    if (!(read_header() && read_keys() && read_alignment() && read_tensors() && place_tensors())) {
      return fail(file_->path_ + ": " + error_);
    }
    file_->mapping_ = std::move(mapping);
    return std::shared_ptr<const GgufFile>(std::move(file_));
  }

 private:
  uint64_t remaining() const { return file_->bytes_.size() - at_; }

  bool refuse(std::string message) {
    error_ = std::move(message);
    return false;
  }
  bool cut_off(const std::string& what) {
    return refuse("ends at byte " + std::to_string(file_->bytes_.size()) + " inside " + what);
  }

  template <typename T>
  bool read(T& out, const std::string& what) {
    if (remaining() < sizeof(T)) return cut_off(what);
    out = load_le<T>(file_->bytes_.data() + at_);
    at_ += sizeof(T);
    return true;
  }

  // A length-prefixed text of at most bytes_max bytes.
  bool read_text(std::string_view& out, uint64_t bytes_max, const std::string& what) {
    uint64_t length = 0;
    if (!read(length, what)) return false;
    if (length > remaining()) {
      return refuse(what + " claims " + std::to_string(length) + " bytes at byte " +
                    std::to_string(at_) + ", the file has " + std::to_string(remaining()) +
                    " left");
    }
    if (length > bytes_max) {
      return refuse(what + " is " + std::to_string(length) + " bytes long, at most " +
                    std::to_string(bytes_max) + " are allowed");
    }
    out = as_text(file_->bytes_.subspan(at_, length));
    at_ += length;
    return true;
  }

  bool read_header() {
    const ByteView bytes = file_->bytes_;
    if (bytes.size() < 4 || as_text(bytes.first(4)) != "GGUF") {
      return refuse("is not a GGUF file, it begins with " +
                    quoted(as_text(bytes.first(std::min<size_t>(4, bytes.size())))));
    }
    at_ = 4;
    uint32_t version = 0;
    if (!read(version, "the version")) return false;
    if (version != 0 && (version & 0xFFFF) == 0) {
      return refuse("is a big-endian GGUF file, only little-endian ones are read");
    }
    if (version != 2 && version != 3) {
      return refuse("GGUF version " + std::to_string(version) +
                    " is not supported, only 2 and 3 are");
    }
    file_->version_ = version;
    if (!read(tensor_count_, "the tensor count") || !read(key_count_, "the key count"))
      return false;
    if (key_count_ > remaining() / kKeyBytesMin) {
      return refuse("claims " + std::to_string(key_count_) + " keys, the file has " +
                    std::to_string(remaining()) + " bytes left");
    }
    if (tensor_count_ > remaining() / kTensorRecordBytesMin) {
      return refuse("claims " + std::to_string(tensor_count_) + " tensors, the file has " +
                    std::to_string(remaining()) + " bytes left");
    }
    return true;
  }

  bool read_keys() {
    file_->keys_.reserve(key_count_);
    file_->key_index_.reserve(key_count_);
    for (uint64_t i = 0; i < key_count_; ++i) {
      std::string_view name;
      if (!read_text(name, kGgufKeyBytesMax, "the name of key " + std::to_string(i))) return false;
      if (name.empty()) return refuse("key " + std::to_string(i) + " has an empty name");
      for (const char c : name) {
        if (c < 0x20 || c > 0x7E) {
          return refuse("key " + std::to_string(i) +
                        " has a name that is not printable ASCII: " + quoted(name));
        }
      }
      if (!file_->key_index_.emplace(name, i).second)
        return refuse("key " + quoted(name) + " occurs twice");
      if (!read_value(name)) return false;
    }
    return true;
  }

  bool read_type(GgufType& out, const std::string& what) {
    uint32_t type = 0;
    if (!read(type, what)) return false;
    if (type >= kTypeCount) {
      return refuse(what + " has value type " + std::to_string(type) +
                    ", the highest one known is " + std::to_string(kTypeCount - 1));
    }
    out = static_cast<GgufType>(type);
    return true;
  }

  bool read_value(std::string_view name) {
    const std::string what = "key " + quoted(name);
    GgufType type{};
    if (!read_type(type, what)) return false;
    const uint64_t begin = at_;
    GgufType element_type = type;
    uint64_t count = 1;
    if (type == GgufType::kArray) {
      if (!read_type(element_type, what) || !read(count, what)) return false;
      if (element_type == GgufType::kArray) return refuse(what + " is an array of arrays");
    }
    if (!skip_elements(element_type, count, what)) return false;
    file_->keys_.push_back(
        {name, GgufValue(type, element_type, count, file_->bytes_.subspan(begin, at_ - begin))});
    return true;
  }

  bool skip_elements(GgufType type, uint64_t count, const std::string& what) {
    if (type == GgufType::kText) {
      if (count > remaining() / 8) return too_many(type, count, what);
      std::string_view ignored;
      for (uint64_t i = 0; i < count; ++i) {
        if (!read_text(ignored, UINT64_MAX, what)) return false;
      }
      return true;
    }
    const auto size = checked_mul(count, scalar_bytes(type));
    if (!size || *size > remaining()) return too_many(type, count, what);
    if (type == GgufType::kBool) {
      for (const std::byte value : file_->bytes_.subspan(at_, count)) {
        if (value > std::byte{1}) {
          return refuse(what + " has the bool " + std::to_string(static_cast<int>(value)) +
                        ", expected 0 or 1");
        }
      }
    }
    at_ += *size;
    return true;
  }

  bool too_many(GgufType type, uint64_t count, const std::string& what) {
    return refuse(what + " claims " + std::to_string(count) + " values of type " +
                  gguf_type_name(type) + ", the file has " + std::to_string(remaining()) +
                  " bytes left");
  }

  bool read_alignment() {
    const GgufValue* value = file_->find_key("general.alignment");
    if (value == nullptr) return true;
    const uint64_t alignment =
        value->type() == GgufType::kU32 ? static_cast<uint64_t>(*value->integer()) : 0;
    if (!std::has_single_bit(alignment)) {
      return refuse("key \"general.alignment\" is " + value->describe() +
                    ", expected u32 with a power of two");
    }
    file_->alignment_ = alignment;
    return true;
  }

  bool read_tensors() {
    file_->tensors_.reserve(tensor_count_);
    file_->tensor_index_.reserve(tensor_count_);
    for (uint64_t i = 0; i < tensor_count_; ++i) {
      GgufTensor tensor;
      if (!read_text(tensor.name, kGgufTensorNameBytesMax,
                     "the name of tensor " + std::to_string(i)))
        return false;
      if (tensor.name.empty()) return refuse("tensor " + std::to_string(i) + " has an empty name");
      if (!file_->tensor_index_.emplace(tensor.name, i).second) {
        return refuse("tensor " + quoted(tensor.name) + " occurs twice");
      }
      if (!read_tensor_record(tensor)) return false;
      file_->tensors_.push_back(tensor);
    }
    file_->header_bytes_ = at_;
    return true;
  }

  bool read_tensor_record(GgufTensor& tensor) {
    const std::string what = "tensor " + quoted(tensor.name);
    if (!read(tensor.dimension_count, what)) return false;
    if (tensor.dimension_count < 1 || tensor.dimension_count > kGgufDimensionsMax) {
      return refuse(what + " has " + std::to_string(tensor.dimension_count) +
                    " dimensions, expected 1 to " + std::to_string(kGgufDimensionsMax));
    }
    uint64_t elems = 1;
    for (uint32_t d = 0; d < tensor.dimension_count; ++d) {
      if (!read(tensor.ne[d], what)) return false;
      const auto product = checked_mul(elems, tensor.ne[d]);
      if (tensor.ne[d] == 0 || !product || *product > static_cast<uint64_t>(INT64_MAX)) {
        return refuse(what + " has dimension " + std::to_string(d) + " of " +
                      std::to_string(tensor.ne[d]) +
                      (tensor.ne[d] == 0 ? "" : ": the product of its dimensions is too large"));
      }
      elems = *product;
    }
    uint32_t type = 0;
    if (!read(type, what) || !read(tensor.offset, what)) return false;
    return check_format(tensor, type, what);
  }

  // Sets type and a view of the right size; where it lies is place_tensors()'s business.
  bool check_format(GgufTensor& tensor, uint32_t type, const std::string& what) {
    const auto format = dtype_from_gguf(type);
    if (!format) {
      const char* known = foreign_type_name(type);
      return refuse(what + " has type " + std::to_string(type) +
                    (known ? std::string(" (") + known + ")" : "") + ", which is not supported");
    }
    tensor.type = *format;
    const DTypeInfo& info = dtype_info(*format);
    const auto block = static_cast<uint64_t>(info.block_elems);
    if (tensor.ne[0] % block != 0) {
      return refuse(what + " has rows of " + std::to_string(tensor.ne[0]) + " elements, " +
                    info.name + " needs a multiple of " + std::to_string(block));
    }
    const auto size = checked_mul(tensor.elems() / block, static_cast<uint64_t>(info.block_bytes));
    if (!size || *size > file_->bytes_.size()) {
      return refuse(what + " with " + std::to_string(tensor.elems()) + " elements of " + info.name +
                    " does not fit the file of " + std::to_string(file_->bytes_.size()) + " bytes");
    }
    tensor.bytes = file_->bytes_.first(*size);
    return true;
  }

  std::optional<uint64_t> align_up(uint64_t value) const {
    const auto raised = checked_add(value, file_->alignment_ - 1);
    if (!raised) return std::nullopt;
    return *raised & ~(file_->alignment_ - 1);
  }

  // The weights lie one after another in the table's order, each padded to the alignment; anything
  // else is refused, so tensors can neither overlap nor leave the file.
  bool place_tensors() {
    if (file_->tensors_.empty()) return true;
    const auto data_begin = align_up(file_->header_bytes_);
    uint64_t expected = 0;
    for (GgufTensor& tensor : file_->tensors_) {
      const std::string what = "tensor " + quoted(tensor.name);
      if (tensor.offset != expected) {
        return refuse(what + " has offset " + std::to_string(tensor.offset) + ", expected " +
                      std::to_string(expected) + " (tensors follow each other, aligned to " +
                      std::to_string(file_->alignment_) + ")");
      }
      const auto begin = data_begin ? checked_add(*data_begin, expected) : std::nullopt;
      const auto end = begin ? checked_add(*begin, tensor.bytes.size()) : std::nullopt;
      if (!end || *end > file_->bytes_.size()) {
        return refuse(what + " of " + std::to_string(tensor.bytes.size()) + " bytes at offset " +
                      std::to_string(tensor.offset) + " ends beyond the file of " +
                      std::to_string(file_->bytes_.size()) + " bytes");
      }
      tensor.offset = *begin;
      tensor.bytes = file_->bytes_.subspan(*begin, tensor.bytes.size());
      const auto next =
          align_up(expected + tensor.bytes.size());  // cannot wrap: both lie within the file
      if (!next) return refuse(what + " cannot be aligned to " + std::to_string(file_->alignment_));
      expected = *next;
    }
    return true;
  }

  std::shared_ptr<GgufFile> file_;
  uint64_t at_ = 0;
  uint64_t key_count_ = 0;
  uint64_t tensor_count_ = 0;
  std::string error_;
};

Result<std::shared_ptr<const GgufFile>> GgufFile::open(const std::string& path) {
  auto mapping = MappedFile::open(path);
  if (!mapping) return mapping.error();
  return GgufParser((*mapping)->bytes(), path).run(*mapping);
}

Result<std::shared_ptr<const GgufFile>> GgufFile::parse(ByteView bytes, const std::string& path) {
  return GgufParser(bytes, path).run(nullptr);
}

}  // namespace updraft
