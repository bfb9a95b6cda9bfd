// The GGUF reader: a well-formed file in full, then one malformed file per class known from real
// parsers' failures. Bytes are encoded by hand from ggml's docs/gguf.md.
#include "common/model/gguf.h"

#include <doctest/doctest.h>

#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

Result<std::shared_ptr<const GgufFile>> parse(const std::string& bytes) {
  return GgufFile::parse(as_bytes_view(bytes), "small.gguf");
}

// One key of every type, two tensors.
std::string valid_file(uint32_t version = 3) {
  Bytes b;
  b.header(2, 14, version);
  b.key("general.architecture", 8).text("llama");
  b.key("u8", 0).put<uint8_t>(200);
  b.key("i8", 1).put<int8_t>(-5);
  b.key("u16", 2).put<uint16_t>(60000);
  b.key("i16", 3).put<int16_t>(-300);
  b.key("u32", 4).u32(4000000000U);
  b.key("i32", 5).put<int32_t>(-70000);
  b.key("f32", 6).put(1.5F);
  b.key("bool", 7).put<uint8_t>(1);
  b.key("texts", 9).u32(8).u64(3).text("a").text("").text("ccc");
  b.key("i32s", 9).u32(5).u64(2).put<int32_t>(-1).put<int32_t>(7);
  b.key("u64", 10).u64(1ULL << 63);
  b.key("i64", 11).put<int64_t>(-5000000000);
  b.key("f64", 12).put(0.25);
  b.tensor("matrix", {32, 3}, 8, 0);  // Q8_0: 3 rows of 34 bytes
  b.tensor("vector", {5}, 0, 128);
  b.pad(32).zeros(102).zeros(26);
  for (int i = 0; i < 5; ++i) b.put(static_cast<float>(i));
  return b.out;
}

std::string one_key(const std::function<void(Bytes&)>& write) {
  Bytes b;
  b.header(0, 1);
  write(b);
  return b.zeros(64).out;
}

// A file without keys and one tensor record, with room for its weights.
std::string one_tensor(const std::string& name, const std::vector<uint64_t>& ne, uint32_t type,
                       uint64_t offset) {
  return Bytes().header(1, 0).tensor(name, ne, type, offset).pad(32).zeros(4096).out;
}

}  // namespace

TEST_CASE("every value type and the tensor table are read as written") {
  for (const uint32_t version : {2U, 3U}) {
    const std::string bytes = valid_file(version);
    const auto parsed = parse(bytes);
    REQUIRE_MESSAGE(parsed.ok(), parsed.message());
    const GgufFile& file = **parsed;
    CHECK(file.version() == version);
    CHECK(file.alignment() == 32);
    CHECK(file.keys().size() == 14);
    CHECK(file.architecture().value() == "llama");
    CHECK(file.find_key("u8")->integer() == 200);
    CHECK(file.find_key("i8")->integer() == -5);
    CHECK(file.find_key("u16")->integer() == 60000);
    CHECK(file.find_key("i16")->integer() == -300);
    CHECK(file.find_key("u32")->integer() == 4000000000);
    CHECK(file.find_key("i32")->integer() == -70000);
    CHECK(file.find_key("i64")->integer() == -5000000000);
    CHECK_FALSE(file.find_key("u64")->integer().has_value());  // 2^63 does not fit int64
    CHECK(file.find_key("u64")->describe() == "u64 9223372036854775808");
    CHECK(file.find_key("f32")->number() == 1.5);
    CHECK(file.find_key("f64")->number() == 0.25);
    CHECK_FALSE(file.find_key("f32")->integer().has_value());
    CHECK(file.find_key("bool")->boolean() == true);
    CHECK(file.find_key("texts")->texts() == std::vector<std::string_view>{"a", "", "ccc"});
    CHECK(file.find_key("texts")->describe() == "array of 3 text");
    CHECK(file.find_key("i32s")->integers() == std::vector<int64_t>{-1, 7});
    CHECK_FALSE(file.find_key("i32s")->numbers().has_value());
    CHECK(file.find_key("absent") == nullptr);

    const GgufTensor* matrix = file.find_tensor("matrix");
    REQUIRE(matrix != nullptr);
    CHECK(matrix->type == DType::kQ8_0);
    CHECK(matrix->dimension_count == 2);
    CHECK(matrix->ne == std::array<uint64_t, 4>{32, 3, 1, 1});
    CHECK(matrix->bytes.size() == 102);
    CHECK(matrix->offset % 32 == 0);
    const GgufTensor* vector = file.find_tensor("vector");
    REQUIRE(vector != nullptr);
    CHECK(vector->bytes.data() + vector->bytes.size() ==
          as_bytes_view(bytes).data() + bytes.size());
    CHECK(load_le<float>(vector->bytes.data() + 16) == 4.0F);
  }
}

TEST_CASE("a file cut at any byte is refused and never read beyond its end") {
  const std::string bytes = valid_file();
  for (size_t size = 0; size < bytes.size(); ++size) {
    // A copy of its own, so that a sanitizer sees the first byte read too far.
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    const auto parsed = GgufFile::parse(as_bytes_view({cut.data(), cut.size()}), "small.gguf");
    REQUIRE_FALSE(parsed.ok());
    REQUIRE(contains(parsed.message(), "small.gguf: "));
  }
}

TEST_CASE("a byte changed anywhere in the header never crashes") {
  const std::string bytes = valid_file();
  for (size_t at = 0; at < bytes.size() - 150; ++at) {
    for (const int value : {0x00, 0x01, 0x7F, 0x80, 0xFF}) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(value);
      const auto parsed = parse(changed);
      if (parsed.ok()) {
        for (const GgufKey& key : (*parsed)->keys()) CHECK_FALSE(key.value.describe().empty());
      }
    }
  }
}

TEST_CASE("wrong magic, old, future and big-endian versions are refused") {
  check_refused(parse("GGML" + valid_file().substr(4)), {"small.gguf", "GGML"});
  check_refused(parse(Bytes().header(0, 0, 0).out), {"version 0"});
  check_refused(parse(Bytes().header(0, 0, 1).out), {"version 1"});
  check_refused(parse(Bytes().header(0, 0, 4).out), {"version 4"});
  check_refused(parse(Bytes().header(0, 0, 0x03000000).out), {"big-endian"});
}

TEST_CASE("counts that the file cannot hold are refused before anything is allocated") {
  for (const unsigned long long count : {~0ULL, 1ULL << 60, 100ULL}) {
    const std::string number = std::to_string(count);
    check_refused(parse(Bytes().header(0, count).zeros(50).out), {number.c_str(), "keys"});
    check_refused(parse(Bytes().header(count, 0).zeros(50).out), {number.c_str(), "tensors"});
  }
}

TEST_CASE("texts longer than the file are refused, also when the length wraps") {
  for (const unsigned long long length : {~0ULL, ~0ULL - 7, 1ULL << 63, 1000ULL}) {
    const std::string number = std::to_string(length);
    check_refused(parse(Bytes().header(0, 1).u64(length).zeros(64).out),
                  {"name of key 0", number.c_str()});
    check_refused(parse(one_key([&](Bytes& b) { b.key("k", 8).u64(length); })),
                  {"\"k\"", number.c_str()});
    check_refused(parse(one_key([&](Bytes& b) { b.key("k", 9).u32(8).u64(1).u64(length); })),
                  {"\"k\"", number.c_str()});
    check_refused(parse(Bytes().header(1, 0).u64(length).zeros(64).out),
                  {"name of tensor 0", number.c_str()});
  }
}

TEST_CASE("arrays larger than the file are refused, also when count times size wraps") {
  for (const unsigned long long count : {~0ULL, (1ULL << 61) + 1, 1ULL << 62, 65ULL}) {
    const std::string number = std::to_string(count);
    for (const uint32_t type : {0U, 4U, 7U, 8U, 10U}) {
      check_refused(parse(one_key([&](Bytes& b) { b.key("k", 9).u32(type).u64(count); })),
                    {"\"k\"", number.c_str()});
    }
  }
}

TEST_CASE("unknown value types, nested arrays and bools other than 0 and 1 are refused") {
  check_refused(parse(one_key([](Bytes& b) { b.key("k", 13); })), {"\"k\"", "type 13"});
  check_refused(parse(one_key([](Bytes& b) { b.key("k", UINT32_MAX); })), {"\"k\"", "4294967295"});
  check_refused(parse(one_key([](Bytes& b) { b.key("k", 9).u32(99).u64(1); })),
                {"\"k\"", "type 99"});
  check_refused(parse(one_key([](Bytes& b) { b.key("k", 9).u32(9).u64(1); })),
                {"\"k\"", "array of arrays"});
  check_refused(parse(one_key([](Bytes& b) { b.key("k", 7).put<uint8_t>(2); })),
                {"\"k\"", "bool 2"});
  check_refused(
      parse(one_key([](Bytes& b) { b.key("k", 9).u32(7).u64(2).put<uint8_t>(1).put<uint8_t>(9); })),
      {"\"k\"", "bool 9"});
}

TEST_CASE("empty, overlong, unprintable and repeated keys are refused") {
  check_refused(parse(one_key([](Bytes& b) { b.key("", 0); })), {"key 0", "empty"});
  check_refused(parse(one_key([](Bytes& b) { b.key(std::string(65536, 'a'), 0); })),
                {"key 0", "65536"});
  check_refused(parse(one_key([](Bytes& b) { b.key("a\nb", 0); })), {"key 0", "a\\x0ab"});
  check_refused(
      parse(
          Bytes().header(0, 2).key("twice", 0).put<uint8_t>(1).key("twice", 0).put<uint8_t>(1).out),
      {"\"twice\"", "occurs twice"});
}

TEST_CASE("an alignment of zero, no power of two or of another type is refused") {
  for (const uint32_t alignment : {0U, 3U, 48U, UINT32_MAX}) {
    const std::string number = std::to_string(alignment);
    check_refused(parse(one_key([&](Bytes& b) { b.key("general.alignment", 4).u32(alignment); })),
                  {"general.alignment", number.c_str()});
  }
  check_refused(parse(one_key([](Bytes& b) { b.key("general.alignment", 10).u64(32); })),
                {"general.alignment", "u64"});
  check_refused(parse(one_key([](Bytes& b) { b.key("general.alignment", 8).text("32"); })),
                {"general.alignment", "text"});
}

TEST_CASE("tensor names that are empty, too long or repeated are refused") {
  check_refused(parse(one_tensor("", {1}, 0, 0)), {"tensor 0", "empty"});
  check_refused(parse(one_tensor(std::string(64, 'n'), {1}, 0, 0)), {"tensor 0", "64"});
  CHECK(parse(one_tensor(std::string(63, 'n'), {1}, 0, 0)).ok());
  check_refused(parse(Bytes()
                          .header(2, 0)
                          .tensor("t", {8}, 0, 0)
                          .tensor("t", {8}, 0, 32)
                          .pad(32)
                          .zeros(64)
                          .out),
                {"\"t\"", "occurs twice"});
}

TEST_CASE("shapes with too many, zero or overflowing dimensions are refused") {
  check_refused(parse(one_tensor("t", {1, 1, 1, 1, 1}, 0, 0)), {"\"t\"", "5 dimensions"});
  check_refused(parse(one_tensor("t", std::vector<uint64_t>(9, 1), 0, 0)),
                {"\"t\"", "9 dimensions"});
  check_refused(parse(one_tensor("t", {}, 0, 0)), {"\"t\"", "0 dimensions"});
  check_refused(parse(one_tensor("t", {0}, 0, 0)), {"\"t\"", "of 0"});
  check_refused(parse(one_tensor("t", {4, 0, 4}, 0, 0)), {"\"t\"", "dimension 1 of 0"});
  check_refused(parse(one_tensor("t", {~0ULL}, 0, 0)), {"\"t\"", "18446744073709551615"});
  check_refused(parse(one_tensor("t", {(1ULL << 42) + 1, 1ULL << 22}, 0, 0)),
                {"\"t\"", "too large"});
  check_refused(parse(one_tensor("t", {1ULL << 32, 1ULL << 32}, 0, 0)), {"\"t\"", "too large"});
  check_refused(parse(one_tensor("t", {1ULL << 62, 2}, 0, 0)), {"\"t\"", "too large"});
}

TEST_CASE("formats that do not exist or are not read are refused by number and name") {
  check_refused(parse(one_tensor("t", {256}, 4, 0)), {"\"t\"", "type 4"});
  check_refused(parse(one_tensor("t", {256}, 10, 0)), {"\"t\"", "type 10", "Q2_K"});
  check_refused(parse(one_tensor("t", {256}, 1000, 0)), {"\"t\"", "type 1000"});
  check_refused(parse(one_tensor("t", {256}, UINT32_MAX, 0)), {"\"t\"", "type 4294967295"});
}

TEST_CASE("rows that are no whole number of blocks are refused") {
  check_refused(parse(one_tensor("t", {33}, 2, 0)), {"\"t\"", "33", "Q4_0", "32"});
  check_refused(parse(one_tensor("t", {128, 4}, 12, 0)), {"\"t\"", "128", "Q4_K", "256"});
  CHECK(parse(one_tensor("t", {256, 4}, 12, 0)).ok());
}

TEST_CASE("tensors outside the file, and sizes whose bytes or sum wrap, are refused") {
  check_refused(parse(one_tensor("t", {1025}, 0, 0)), {"\"t\"", "beyond the file"});
  CHECK(parse(one_tensor("t", {1024}, 0, 0)).ok());
  check_refused(parse(one_tensor("t", {1ULL << 61, 4}, 0, 0)),
                {"\"t\""});  // elements * 4 bytes wraps to 0
  check_refused(parse(one_tensor("t", {1ULL << 62}, 0, 0)), {"\"t\"", "does not fit"});
  // Two tensors, each of which would fit; their padded sum does not.
  check_refused(parse(Bytes()
                          .header(2, 0)
                          .tensor("a", {512}, 0, 0)
                          .tensor("b", {600}, 0, 2048)
                          .pad(32)
                          .zeros(4096)
                          .out),
                {"\"b\"", "beyond the file"});
}

TEST_CASE("offsets that overlap, leave holes, are not aligned or point far away are refused") {
  check_refused(parse(one_tensor("t", {8}, 0, 4)), {"\"t\"", "offset 4", "expected 0"});
  check_refused(parse(one_tensor("t", {8}, 0, 32)), {"\"t\"", "offset 32"});
  check_refused(parse(one_tensor("t", {8}, 0, ~0ULL - 31)), {"\"t\"", "18446744073709551584"});
  check_refused(parse(Bytes()
                          .header(2, 0)
                          .tensor("a", {16}, 0, 0)
                          .tensor("b", {16}, 0, 32)
                          .pad(32)
                          .zeros(256)
                          .out),
                {"\"b\"", "offset 32", "expected 64"});
}

TEST_CASE("a larger alignment moves the weights, and offsets must follow it") {
  Bytes b;
  b.header(2, 1).key("general.alignment", 4).u32(128);
  b.tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 128);
  b.pad(128).put(1.0F).zeros(124).put(2.0F);
  const auto parsed = parse(b.out);
  REQUIRE_MESSAGE(parsed.ok(), parsed.message());
  CHECK(load_le<float>((*parsed)->find_tensor("b")->bytes.data()) == 2.0F);

  Bytes wrong;
  wrong.header(2, 1).key("general.alignment", 4).u32(128);
  wrong.tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 32).pad(128).zeros(512);
  check_refused(parse(wrong.out), {"\"b\"", "offset 32", "expected 128"});
}

TEST_CASE("an alignment larger than the file is refused when there are weights") {
  Bytes b;
  b.header(1, 1).key("general.alignment", 4).u32(1U << 31).tensor("a", {1}, 0, 0).pad(32).zeros(64);
  check_refused(parse(b.out), {"\"a\"", "beyond the file"});
}

TEST_CASE("the smallest file, without keys and tensors, is read") {
  const auto parsed = parse(Bytes().header(0, 0).out);
  REQUIRE(parsed.ok());
  CHECK((*parsed)->tensors().empty());
  check_refused((*parsed)->architecture(), {"general.architecture", "missing"});
}

TEST_CASE("files that are not there, empty or folders are refused by name") {
  const TempDir dir;
  check_refused(GgufFile::open(dir.file("absent.gguf")), {"absent.gguf", "No such file"});
  check_refused(GgufFile::open(dir.path()), {"folder"});
  write_file(dir.file("empty.gguf"), "");
  check_refused(GgufFile::open(dir.file("empty.gguf")), {"empty.gguf", "is empty"});
}

TEST_CASE("the vocabulary files of llama.cpp have their known keys") {
  struct Expected {
    const char* name;
    const char* architecture;
    size_t keys;
    uint64_t tokens;
    uint64_t merges;
  };
  // Counted with an independent script.
  for (const Expected& expected :
       {Expected{"gpt-2", "gpt2", 16, 50257, 50000}, Expected{"phi-3", "phi3", 26, 32064, 0},
        Expected{"qwen2", "qwen2", 11, 151646, 151387}}) {
    const auto path = shared_data(std::string("tokenizers/ggml-vocab-") + expected.name + ".gguf");
    if (!path) continue;
    const auto file = GgufFile::open(*path);
    REQUIRE_MESSAGE(file.ok(), file.message());
    CHECK((*file)->architecture().value() == expected.architecture);
    CHECK((*file)->keys().size() == expected.keys);
    CHECK((*file)->tensors().empty());
    CHECK((*file)->find_key("tokenizer.ggml.tokens")->count() == expected.tokens);
    const GgufValue* merges = (*file)->find_key("tokenizer.ggml.merges");
    CHECK((merges == nullptr ? 0 : merges->count()) == expected.merges);
  }
}
