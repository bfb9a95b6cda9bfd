// Encoding of GGUF version 3. Layout: ggml's docs/gguf.md; tensors follow each other in the table's
// order, each padded.
#include "common/model/gguf_writer.h"

#include <algorithm>
#include <bit>
#include <filesystem>

namespace updraft {
namespace {

template <typename T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_text(std::string& out, std::string_view text) {
  append<uint64_t>(out, text.size());
  out += text;
}

template <typename T>
std::string encode_scalar(T value) {
  std::string out;
  append(out, value);
  return out;
}

std::string encode_text(std::string_view text) {
  std::string out;
  append_text(out, text);
  return out;
}

std::string array_header(GgufType element_type, size_t count) {
  std::string out;
  append(out, static_cast<uint32_t>(element_type));
  append<uint64_t>(out, count);
  return out;
}

template <typename T>
std::string encode_array(GgufType element_type, std::span<const T> values) {
  std::string out = array_header(element_type, values.size());
  for (const T value : values) append(out, value);
  return out;
}

std::string part_name(const std::string& path) { return path + ".part"; }

}  // namespace

GgufWriter::GgufWriter(uint64_t alignment) : alignment_(alignment) {
  UPDRAFT_CHECK(std::has_single_bit(alignment) && alignment >= 8 && alignment <= (1U << 30));
  if (alignment != kGgufDefaultAlignment) {
    set("general.alignment", GgufType::kU32, encode_scalar(static_cast<uint32_t>(alignment)));
  }
}

GgufWriter::~GgufWriter() {
  if (path_.empty()) return;
  out_.close();
  std::error_code ignored;
  std::filesystem::remove(part_name(path_), ignored);
}

void GgufWriter::set(std::string_view key, GgufType type, std::string encoded) {
  UPDRAFT_CHECK(!key.empty() && key.size() <= kGgufKeyBytesMax);
  UPDRAFT_CHECK(path_.empty(), "metadata is declared before begin()");
  const auto [found, is_new] = entry_index_.emplace(key, entries_.size());
  if (is_new) {
    entries_.push_back({std::string(key), type, std::move(encoded)});
  } else {
    entries_[found->second].type = type;
    entries_[found->second].encoded = std::move(encoded);
  }
}

void GgufWriter::set_u8(std::string_view key, uint8_t value) {
  set(key, GgufType::kU8, encode_scalar(value));
}
void GgufWriter::set_u32(std::string_view key, uint32_t value) {
  set(key, GgufType::kU32, encode_scalar(value));
}
void GgufWriter::set_i32(std::string_view key, int32_t value) {
  set(key, GgufType::kI32, encode_scalar(value));
}
void GgufWriter::set_u64(std::string_view key, uint64_t value) {
  set(key, GgufType::kU64, encode_scalar(value));
}
void GgufWriter::set_f32(std::string_view key, float value) {
  set(key, GgufType::kF32, encode_scalar(value));
}
void GgufWriter::set_bool(std::string_view key, bool value) {
  set(key, GgufType::kBool, encode_scalar<uint8_t>(value ? 1 : 0));
}
void GgufWriter::set_text(std::string_view key, std::string_view value) {
  set(key, GgufType::kText, encode_text(value));
}
void GgufWriter::set_i32s(std::string_view key, std::span<const int32_t> values) {
  set(key, GgufType::kArray, encode_array(GgufType::kI32, values));
}
void GgufWriter::set_u32s(std::string_view key, std::span<const uint32_t> values) {
  set(key, GgufType::kArray, encode_array(GgufType::kU32, values));
}
void GgufWriter::set_f32s(std::string_view key, std::span<const float> values) {
  set(key, GgufType::kArray, encode_array(GgufType::kF32, values));
}
void GgufWriter::set_texts(std::string_view key, std::span<const std::string> values) {
  std::string out = array_header(GgufType::kText, values.size());
  for (const std::string& value : values) append_text(out, value);
  set(key, GgufType::kArray, std::move(out));
}

void GgufWriter::set_copy(const GgufKey& from) {
  if (from.name == "general.alignment") return;
  set(from.name, from.value.type(), std::string(as_text(from.value.encoded())));
}

void GgufWriter::remove_key(std::string_view key) {
  const auto found = entry_index_.find(std::string(key));
  if (found == entry_index_.end()) return;
  entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(found->second));
  entry_index_.clear();
  for (size_t i = 0; i < entries_.size(); ++i) entry_index_.emplace(entries_[i].key, i);
}

void GgufWriter::add_tensor(std::string_view name, DType type, std::span<const uint64_t> ne) {
  UPDRAFT_CHECK(path_.empty(), "tensors are declared before begin()");
  UPDRAFT_CHECK(!name.empty() && name.size() <= kGgufTensorNameBytesMax);
  UPDRAFT_CHECK(!ne.empty() && ne.size() <= kGgufDimensionsMax);
  const DTypeInfo& info = dtype_info(type);
  UPDRAFT_CHECK(ne[0] > 0 && ne[0] % static_cast<uint64_t>(info.block_elems) == 0,
                "rows are whole blocks");
  uint64_t size =
      ne[0] / static_cast<uint64_t>(info.block_elems) * static_cast<uint64_t>(info.block_bytes);
  for (const uint64_t n : ne.subspan(1)) {
    const auto product = checked_mul(size, n);
    UPDRAFT_CHECK(product.has_value() && n > 0);
    size = *product;
  }
  tensors_.push_back({std::string(name), type, {ne.begin(), ne.end()}, data_bytes_, size});
  data_bytes_ = align_up(data_bytes_ + size);
}

uint64_t GgufWriter::file_bytes() const { return header().size() + data_bytes_; }

std::string GgufWriter::header() const {
  std::string out = "GGUF";
  append(out, kGgufVersion);
  append<uint64_t>(out, tensors_.size());
  append<uint64_t>(out, entries_.size());
  for (const Entry& entry : entries_) {
    append_text(out, entry.key);
    append(out, static_cast<uint32_t>(entry.type));
    out += entry.encoded;
  }
  for (const Tensor& tensor : tensors_) {
    append_text(out, tensor.name);
    append(out, static_cast<uint32_t>(tensor.ne.size()));
    for (const uint64_t n : tensor.ne) append(out, n);
    append(out, dtype_info(tensor.type).gguf_type);
    append(out, tensor.offset);
  }
  out.resize(align_up(out.size()), '\0');
  return out;
}

Result<void> GgufWriter::put(const char* data, size_t size) {
  out_.write(data, static_cast<std::streamsize>(size));
  if (!out_)
    return fail(part_name(path_) + ": cannot write " + std::to_string(size) +
                " bytes (disk full?)");
  return {};
}

Result<void> GgufWriter::begin(const std::string& path) {
  UPDRAFT_CHECK(path_.empty() && !path.empty(), "begin() is called once");
  out_.open(part_name(path), std::ios::binary | std::ios::trunc);
  if (!out_) return fail(part_name(path) + ": cannot create the file");
  path_ = path;
  tensor_index_ = 0;
  tensor_written_ = 0;
  const std::string bytes = header();
  return put(bytes.data(), bytes.size());
}

Result<void> GgufWriter::write(ByteView bytes) {
  UPDRAFT_CHECK(!path_.empty(), "write() follows begin()");
  while (!bytes.empty()) {
    UPDRAFT_CHECK(tensor_index_ < tensors_.size(), "more bytes than the declared tensors hold");
    const uint64_t tensor_bytes = tensors_[tensor_index_].bytes;
    const size_t size = std::min<uint64_t>(bytes.size(), tensor_bytes - tensor_written_);
    auto written = put(reinterpret_cast<const char*>(bytes.data()), size);
    if (!written) return written;
    bytes = bytes.subspan(size);
    tensor_written_ += size;
    if (tensor_written_ < tensor_bytes) continue;
    const std::string padding(align_up(tensor_bytes) - tensor_bytes, '\0');
    written = put(padding.data(), padding.size());
    if (!written) return written;
    ++tensor_index_;
    tensor_written_ = 0;
  }
  return {};
}

Result<void> GgufWriter::finish() {
  UPDRAFT_CHECK(!path_.empty(), "finish() follows begin()");
  UPDRAFT_CHECK(tensor_index_ == tensors_.size(),
                "every declared tensor is written before finish()");
  out_.close();
  if (!out_) return fail(part_name(path_) + ": cannot write its end (disk full?)");
  std::error_code error;
  std::filesystem::rename(part_name(path_), path_, error);
  if (error) return fail(path_ + ": cannot rename the finished file: " + error.message());
  path_.clear();
  return {};
}

}  // namespace updraft
