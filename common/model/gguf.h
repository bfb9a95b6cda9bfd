// The GGUF container (versions 2 and 3, little endian): header, typed key-values and the tensor
// table, every extent checked against the file before anything is read or allocated. Knows nothing
// about architectures; gguf_model.h maps the keys to hyperparameters and weights. Layout: ggml's
// docs/gguf.md.
//
// Values stay in the file's bytes: a GgufValue is a checked view, decoded when asked for. So a
// vocabulary of 150,000 strings costs nothing until someone wants it, and a tool can copy a value
// unchanged.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/model/mapped_file.h"
#include "kernels/quant/dtype.h"

namespace updraft {

inline constexpr uint32_t kGgufVersion = 3;
inline constexpr uint64_t kGgufDefaultAlignment = 32;
inline constexpr size_t kGgufKeyBytesMax = 65535;
inline constexpr size_t kGgufTensorNameBytesMax = 63;
inline constexpr size_t kGgufDimensionsMax = 4;

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kText,
  kArray,
  kU64,
  kI64,
  kF64,
};
// "u32", "text", ...
const char* gguf_type_name(GgufType type);

// One value: a scalar, or an array of scalars or texts (arrays of arrays are refused on reading).
// Valid as long as the file.
class GgufValue {
 public:
  GgufValue(GgufType type, GgufType element_type, uint64_t count, ByteView bytes)
      : type_(type), element_type_(element_type), count_(count), bytes_(bytes) {}

  GgufType type() const { return type_; }
  bool is_array() const { return type_ == GgufType::kArray; }
  GgufType element_type() const { return element_type_; }  // of an array; a scalar's own type
  uint64_t count() const { return count_; }                // elements of an array; 1 for a scalar
  // The encoded value as the file has it: for arrays with element type and count in front.
  ByteView encoded() const { return bytes_; }

  // Scalars. Nothing when the value has another type; integer() takes every integer type and has
  // nothing for u64 values beyond int64, number() takes f32 and f64.
  std::optional<int64_t> integer() const;
  std::optional<double> number() const;
  std::optional<bool> boolean() const;
  std::optional<std::string_view> text() const;

  // Arrays, in order. Nothing when the elements are not integers / floats / texts.
  std::optional<std::vector<int64_t>> integers() const;
  std::optional<std::vector<float>> numbers() const;
  std::optional<std::vector<std::string_view>> texts() const;

  // For messages and tools: `u32 7`, `text "llama"`, `array of 512 text`.
  std::string describe() const;

 private:
  GgufType type_;
  GgufType element_type_;
  uint64_t count_;
  ByteView bytes_;
};

struct GgufKey {
  std::string_view name;
  GgufValue value;
};

// One tensor of the table, its bytes known to lie within the file.
struct GgufTensor {
  std::string_view name;
  DType type = DType::kF32;
  uint32_t dimension_count = 1;
  std::array<uint64_t, kGgufDimensionsMax> ne{
      1, 1, 1, 1};      // fastest first: ne[0] = cols, ne[1] = rows; unused ones are 1
  uint64_t offset = 0;  // from the file's beginning
  ByteView bytes;

  uint64_t elems() const { return ne[0] * ne[1] * ne[2] * ne[3]; }  // checked on reading: fits
};

// Immutable once open; any thread.
class GgufFile {
 public:
  // Maps the file and checks all of it but the weights' values. Errors name the file, the key or
  // tensor and the value.
  static Result<std::shared_ptr<const GgufFile>> open(const std::string& path);
  // The same for bytes that the caller keeps alive; `path` is only for messages.
  static Result<std::shared_ptr<const GgufFile>> parse(ByteView bytes, const std::string& path);

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  ByteView bytes() const { return bytes_; }
  const std::shared_ptr<const MappedFile>& mapping() const {
    return mapping_;
  }  // null after parse()
  // Header, key-values and tensor table: everything before the padding in front of the weights.
  ByteView header_bytes() const { return bytes_.first(header_bytes_); }

  const std::vector<GgufKey>& keys() const { return keys_; }           // in the file's order
  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in the file's order
  // nullptr when there is none of that name.
  const GgufValue* find_key(std::string_view name) const;
  const GgufTensor* find_tensor(std::string_view name) const;

  // general.architecture; an error when absent or not text.
  Result<std::string> architecture() const;

 private:
  friend class GgufParser;
  GgufFile() = default;

  std::string path_;
  std::shared_ptr<const MappedFile> mapping_;  // empty after parse()
  ByteView bytes_;
  size_t header_bytes_ = 0;
  uint32_t version_ = 0;
  uint64_t alignment_ = kGgufDefaultAlignment;
  std::vector<GgufKey> keys_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> key_index_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

// All parts of a model that may be split into several files (name-00001-of-00003.gguf): given any
// part, opens all of them in order. A file that is not split gives itself. Errors: a part missing,
// parts that contradict each other or the names.
Result<std::vector<std::shared_ptr<const GgufFile>>> open_gguf_parts(const std::string& path);

}  // namespace updraft
