// The one implementation of Model, and open_model(), which looks at the file to choose the reader.
#include "common/model/loaded_model.h"

#include <filesystem>
#include <fstream>

namespace updraft {
namespace {

class LoadedModel final : public Model {
 public:
  explicit LoadedModel(ModelParts parts)
      : files_(std::move(parts.files)), mappings_(std::move(parts.mappings)) {
    path_ = std::move(parts.path);
    name_ = std::move(parts.name);
    quantization_ = std::move(parts.built.quantization);
    digest_ = std::move(parts.digest);
    file_bytes_ = parts.file_bytes;
    parameter_count_ = parts.built.parameter_count;
    hyperparameters_ = parts.hyperparameters;
    hyperparameters_.tied_embeddings = parts.built.tied_embeddings;
    weights_ = std::move(parts.built.weights);
    tokenizer_ = std::move(parts.tokenizer);
  }
  void will_read(const WeightView& view) const override {
    for (const auto& mapping : mappings_) mapping->will_read(bytes_of(view));
  }
  void was_read(const WeightView& view) const override {
    for (const auto& mapping : mappings_) mapping->was_read(bytes_of(view));
  }

 private:
  static ByteView bytes_of(const WeightView& view) {
    return {view.data, static_cast<size_t>(view.rows * row_bytes(view.type, view.cols))};
  }

  std::vector<std::shared_ptr<const void>> files_;
  std::vector<std::shared_ptr<const MappedFile>> mappings_;
};

bool begins_with_gguf_magic(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[4] = {};
  file.read(magic, sizeof magic);
  return file.gcount() == 4 && std::string_view(magic, 4) == "GGUF";
}

}  // namespace

std::shared_ptr<const Model> make_model(ModelParts parts) {
  return std::make_shared<const LoadedModel>(std::move(parts));
}

void Digest::mix(std::byte b) {
  constexpr unsigned __int128 kPrime = (static_cast<unsigned __int128>(1) << 88) | 0x13B;
  state_ = (state_ ^ static_cast<uint8_t>(b)) * kPrime;
}

void Digest::add(ByteView bytes) {
  for (const std::byte b : bytes) mix(b);
  for (int shift = 0; shift < 64; shift += 8)
    mix(static_cast<std::byte>((bytes.size() >> shift) & 0xFF));
}

std::string Digest::hex() const {
  std::array<std::byte, 16> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(state_ >> (120 - 8 * i));
  return to_hex(bytes);
}

Result<std::shared_ptr<const Model>> open_model(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found)
    return fail(path + ": no such file or folder");
  if (error) return fail(path + ": " + error.message());
  if (std::filesystem::is_directory(status)) return open_safetensors_model(path);
  const std::string extension = std::filesystem::path(path).extension().string();
  if (extension == ".gguf" || begins_with_gguf_magic(path)) return open_gguf_model(path);
  if (extension == ".safetensors") return open_safetensors_model(path);
  return fail(path +
              ": is neither a GGUF file nor a .safetensors file nor a folder with config.json");
}

}  // namespace updraft
