// The safetensors container: a JSON table in front of the bytes, in one file or in several that an
// index names. All of the reference implementation's checks: the tensors cover the data without
// holes or overlaps, in any order of the table.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/model/mapped_file.h"
#include "kernels/quant/dtype.h"

namespace updraft {

inline constexpr uint64_t kSafetensorsHeaderBytesMax = 100'000'000;

struct SafetensorsTensor {
  std::string name;
  std::string type_name;       // "F16", "I64", ...
  std::optional<DType> type;   // nothing: a format that weights cannot have
  std::vector<int64_t> shape;  // outermost first; empty for a scalar
  ByteView bytes;
};

// Immutable once open; any thread.
class SafetensorsFile {
 public:
  // Errors name the file, the tensor and the value.
  static Result<std::shared_ptr<const SafetensorsFile>> open(const std::string& path);
  // The same for bytes that the caller keeps alive; `path` is only for messages.
  static Result<std::shared_ptr<const SafetensorsFile>> parse(ByteView bytes,
                                                              const std::string& path);

  const std::string& path() const { return path_; }
  ByteView bytes() const { return bytes_; }
  const std::shared_ptr<const MappedFile>& mapping() const {
    return mapping_;
  }                                                                           // null after parse()
  ByteView header_bytes() const { return header_; }                           // the JSON table
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }  // by name
  const SafetensorsTensor* find(std::string_view name) const;

 private:
  SafetensorsFile() = default;
  Result<void> read(ByteView bytes);

  std::string path_;
  std::shared_ptr<const MappedFile> mapping_;  // empty after parse()
  ByteView bytes_;
  ByteView header_;
  std::vector<SafetensorsTensor> tensors_;
};

// The weight_map of an index file: tensor name -> file name beside the index. Refuses names that
// leave the folder.
Result<std::map<std::string, std::string>> read_safetensors_index(const std::string& path);

}  // namespace updraft
