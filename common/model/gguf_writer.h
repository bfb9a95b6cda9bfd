// Writes GGUF version 3: first metadata and the tensor table are declared, then the weights are
// streamed in the same order, so a model larger than memory can be written. The file appears under
// its name only when it is complete.
//
//   GgufWriter writer;
//   writer.set_text("general.architecture", "llama");
//   writer.add_tensor("token_embd.weight", DType::kF32, {64, 512});
//   writer.begin(path); writer.write(bytes)...; writer.finish();
#pragma once

#include <cstdint>
#include <fstream>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/model/gguf.h"

namespace updraft {

// One thread. Declaring something that GGUF cannot express (empty or too long names, rows that are
// no multiple of the block) is a bug of the caller.
class GgufWriter {
 public:
  // alignment: a power of two, >= 8; written as general.alignment when it is not GGUF's default.
  explicit GgufWriter(uint64_t alignment = kGgufDefaultAlignment);
  ~GgufWriter();  // removes an unfinished file
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  // --- metadata, in the order of the first call; a second call for the same key replaces the value
  // ---
  void set_u8(std::string_view key, uint8_t value);
  void set_u32(std::string_view key, uint32_t value);
  void set_i32(std::string_view key, int32_t value);
  void set_u64(std::string_view key, uint64_t value);
  void set_f32(std::string_view key, float value);
  void set_bool(std::string_view key, bool value);
  void set_text(std::string_view key, std::string_view value);
  void set_i32s(std::string_view key, std::span<const int32_t> values);
  void set_u32s(std::string_view key, std::span<const uint32_t> values);
  void set_f32s(std::string_view key, std::span<const float> values);
  void set_texts(std::string_view key, std::span<const std::string> values);
  // A value of another file, byte for byte. general.alignment is the writer's own business and is
  // skipped.
  void set_copy(const GgufKey& from);
  void remove_key(std::string_view key);

  // --- tensors: ne fastest first, {cols, rows} ---
  void add_tensor(std::string_view name, DType type, std::span<const uint64_t> ne);
  void add_tensor(std::string_view name, DType type, std::initializer_list<uint64_t> ne) {
    add_tensor(name, type, std::span(ne.begin(), ne.size()));
  }
  size_t tensor_count() const { return tensors_.size(); }
  uint64_t tensor_bytes(size_t index) const { return tensors_[index].bytes; }
  // Size of the finished file.
  uint64_t file_bytes() const;

  // Everything before the weights, padding included.
  std::string header() const;

  // --- streaming: begin, write in pieces of any size until every declared tensor is full, finish
  // --- Creates `path`.part and writes the header.
  Result<void> begin(const std::string& path);
  // The next bytes of the weights; padding between tensors is the writer's work. More bytes than
  // declared: a bug.
  Result<void> write(ByteView bytes);
  // Checks that all weights were written and renames the file to its name.
  Result<void> finish();

 private:
  struct Entry {
    std::string key;
    GgufType type;
    std::string encoded;
  };
  struct Tensor {
    std::string name;
    DType type;
    std::vector<uint64_t> ne;
    uint64_t offset;  // relative to the weights' beginning
    uint64_t bytes;
  };

  void set(std::string_view key, GgufType type, std::string encoded);
  uint64_t align_up(uint64_t value) const { return (value + alignment_ - 1) & ~(alignment_ - 1); }
  Result<void> put(const char* data, size_t size);

  uint64_t alignment_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> entry_index_;
  std::vector<Tensor> tensors_;
  uint64_t data_bytes_ = 0;  // of the weights as declared, padded

  std::string path_;  // not empty between begin() and finish()
  std::ofstream out_;
  size_t tensor_index_ = 0;      // being written
  uint64_t tensor_written_ = 0;  // of it
};

}  // namespace updraft
