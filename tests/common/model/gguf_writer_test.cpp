// The GGUF writer: its bytes against a hand-made encoding, and whole files read back.
#include "common/model/gguf_writer.h"

#include <doctest/doctest.h>

#include <filesystem>

#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

TEST_CASE("the header is encoded as the format says") {
  GgufWriter writer;
  writer.set_text("general.architecture", "llama");
  writer.set_u32("llama.block_count", 3);
  const std::vector<float> scores = {0.5F, -1.0F};
  writer.set_f32s("scores", scores);
  writer.add_tensor("a", DType::kF32, {3, 2});
  writer.add_tensor("b", DType::kQ4_0, {32});
  Bytes expected;
  expected.header(2, 3)
      .key("general.architecture", 8)
      .text("llama")
      .key("llama.block_count", 4)
      .u32(3);
  expected.key("scores", 9).u32(6).u64(2).put(0.5F).put(-1.0F);
  expected.tensor("a", {3, 2}, 0, 0).tensor("b", {32}, 2, 32).pad(32);
  CHECK(writer.header() == expected.out);
  CHECK(writer.file_bytes() == expected.out.size() + 32 + 32);
}

TEST_CASE("what is written is read back, whatever the size of the pieces") {
  const TempDir dir;
  const std::string path = dir.file("out.gguf");
  std::vector<std::byte> weights(12 + 18 + 68);  // F32 x 3, Q4_0 x 32, Q8_0 x 64
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<std::byte>(i * 7);
  for (const size_t piece : {size_t{1}, size_t{13}, weights.size()}) {
    GgufWriter writer(64);
    writer.set_bool("flag", true);
    writer.set_u64("large", 1ULL << 40);
    writer.set_i32("negative", -4);
    writer.set_u8("small", 9);
    const std::vector<std::string> texts = {"x", "", "z z"};
    writer.set_texts("texts", texts);
    const std::vector<int32_t> numbers = {1, -2};
    writer.set_i32s("numbers", numbers);
    const std::vector<uint32_t> heads = {4, 4};
    writer.set_u32s("heads", heads);
    writer.add_tensor("a", DType::kF32, {3});
    writer.add_tensor("b", DType::kQ4_0, {32});
    writer.add_tensor("c", DType::kQ8_0, {32, 2});
    REQUIRE(writer.begin(path).ok());
    for (size_t at = 0; at < weights.size(); at += piece) {
      REQUIRE(
          writer.write(ByteView(weights).subspan(at, std::min(piece, weights.size() - at))).ok());
    }
    CHECK_FALSE(std::filesystem::exists(path));  // appears only when complete
    REQUIRE(writer.finish().ok());

    const auto file = GgufFile::open(path);
    REQUIRE_MESSAGE(file.ok(), file.message());
    CHECK((*file)->alignment() == 64);
    CHECK((*file)->bytes().size() == writer.file_bytes());
    CHECK((*file)->find_key("flag")->boolean() == true);
    CHECK((*file)->find_key("large")->integer() == int64_t{1} << 40);
    CHECK((*file)->find_key("negative")->integer() == -4);
    CHECK((*file)->find_key("small")->integer() == 9);
    CHECK((*file)->find_key("texts")->texts() == std::vector<std::string_view>{"x", "", "z z"});
    CHECK((*file)->find_key("numbers")->integers() == std::vector<int64_t>{1, -2});
    CHECK((*file)->find_key("heads")->integers() == std::vector<int64_t>{4, 4});
    size_t at = 0;
    for (const GgufTensor& tensor : (*file)->tensors()) {
      CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(),
                       weights.begin() + static_cast<std::ptrdiff_t>(at)));
      at += tensor.bytes.size();
    }
    CHECK(at == weights.size());
    std::filesystem::remove(path);
  }
}

TEST_CASE("a second value replaces the first and a removed key is gone") {
  GgufWriter writer;
  writer.set_u32("a", 1);
  writer.set_u32("b", 2);
  writer.set_u32("c", 3);
  writer.set_text("a", "new");
  writer.remove_key("b");
  writer.set_u32("c", 4);
  const std::string bytes = writer.header();
  const auto file = GgufFile::parse(as_bytes_view(bytes), "memory");
  REQUIRE_MESSAGE(file.ok(), file.message());
  CHECK((*file)->keys().size() == 2);
  CHECK((*file)->find_key("a")->text() == "new");
  CHECK((*file)->find_key("c")->integer() == 4);
}

TEST_CASE("an unfinished file leaves nothing behind") {
  const TempDir dir;
  {
    GgufWriter writer;
    writer.add_tensor("a", DType::kF32, {64});
    REQUIRE(writer.begin(dir.file("out.gguf")).ok());
    REQUIRE(writer.write(as_bytes_view("1234")).ok());
    CHECK_FALSE(std::filesystem::is_empty(dir.path()));
  }
  CHECK(std::filesystem::is_empty(dir.path()));
}

TEST_CASE("a folder that is not there is refused by name") {
  const TempDir dir;
  GgufWriter writer;
  check_refused(writer.begin(dir.file("absent/out.gguf")), {"absent/out.gguf", "cannot create"});
}

TEST_CASE("a real file copied key by key and tensor by tensor has the same bytes") {
  const auto path = shared_data("weights/stories260K-f32.gguf");
  if (!path) return;
  const auto from = GgufFile::open(*path);
  REQUIRE_MESSAGE(from.ok(), from.message());
  const TempDir dir;
  GgufWriter writer;
  for (const GgufKey& key : (*from)->keys()) writer.set_copy(key);
  for (const GgufTensor& tensor : (*from)->tensors()) {
    writer.add_tensor(tensor.name, tensor.type, std::span(tensor.ne).first(tensor.dimension_count));
  }
  REQUIRE(writer.begin(dir.file("copy.gguf")).ok());
  for (const GgufTensor& tensor : (*from)->tensors()) REQUIRE(writer.write(tensor.bytes).ok());
  REQUIRE(writer.finish().ok());
  CHECK(read_file(dir.file("copy.gguf")) == read_file(*path));
}
