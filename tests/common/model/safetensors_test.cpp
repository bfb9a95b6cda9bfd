// The safetensors reader: well-formed files, and one malformed file per check of the reference
// implementation.
#include "common/model/safetensors.h"

#include <doctest/doctest.h>

#include "tests/common/model/model_files.h"
#include "tests/support/shared_data.h"

using namespace updraft;
using namespace updraft::testing;

namespace {

Result<std::shared_ptr<const SafetensorsFile>> parse(const std::string& bytes) {
  return SafetensorsFile::parse(as_bytes_view(bytes), "small.safetensors");
}

// A table with one tensor "t" whose entry is given, over `size` bytes of data.
std::string entry(const std::string& text, size_t size = 8) {
  return safetensors(R"({"t":)" + text + "}", std::string(size, '\0'));
}

}  // namespace

TEST_CASE("tensors are found by name whatever the order of table and data") {
  const std::string table =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},)"
      R"("s":{"dtype":"I64","shape":[],"data_offsets":[12,20]},"a":{"shape":[1],"data_offsets":[8,12],"dtype":"F32"},)"
      R"("e":{"dtype":"F16","shape":[0,3],"data_offsets":[20,20]}}   )";
  const std::string bytes =
      safetensors(table, std::string("12345678") + Bytes().put(2.5F).u64(7).out);
  const auto parsed = parse(bytes);
  REQUIRE_MESSAGE(parsed.ok(), parsed.message());
  CHECK((*parsed)->tensors().size() == 4);
  const SafetensorsTensor* b = (*parsed)->find("b");
  REQUIRE(b != nullptr);
  CHECK(b->type == DType::kBF16);
  CHECK(b->shape == std::vector<int64_t>{2, 2});
  CHECK(as_text(b->bytes) == "12345678");
  CHECK(load_le<float>((*parsed)->find("a")->bytes.data()) == 2.5F);
  CHECK((*parsed)->find("s")->shape.empty());
  CHECK((*parsed)->find("s")->bytes.size() == 8);
  CHECK_FALSE((*parsed)->find("s")->type.has_value());
  CHECK((*parsed)->find("e")->bytes.empty());
  CHECK((*parsed)->find("c") == nullptr);
}

TEST_CASE("a file cut at any byte is refused and never read beyond its end") {
  const std::string bytes = safetensors({patterned("a", {2, 3}, 1), patterned("b", {4}, 2)});
  REQUIRE(parse(bytes).ok());
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    const auto parsed =
        SafetensorsFile::parse(as_bytes_view({cut.data(), cut.size()}), "small.safetensors");
    REQUIRE_FALSE(parsed.ok());
    REQUIRE(contains(parsed.message(), "small.safetensors: "));
  }
}

TEST_CASE("headers that are too long, empty or no JSON object are refused") {
  check_refused(parse(Bytes().u64(~0ULL).zeros(64).out), {"18446744073709551615"});
  check_refused(parse(Bytes().u64(100'000'001).zeros(64).out), {"100000001"});
  check_refused(parse(Bytes().u64(65).zeros(64).out), {"header of 65 bytes", "64 left"});
  check_refused(parse(Bytes().u64(0).out), {"begin with {"});
  check_refused(parse(safetensors(" {}", "")), {"begin with {"});
  check_refused(parse(safetensors("[]", "")), {"begin with {"});
  check_refused(parse(safetensors("{\"t\":", "")), {"header: line 1"});
  check_refused(parse(safetensors("{\"\xFF\":1}", "")), {"UTF-8"});
  CHECK(parse(safetensors("{}", "")).ok());
}

TEST_CASE("entries with missing or wrong fields are refused by the tensor's name") {
  check_refused(parse(entry("1")), {"\"t\"", "dtype"});
  check_refused(parse(entry(R"({"shape":[2],"data_offsets":[0,8]})")), {"\"t\"", "dtype"});
  check_refused(parse(entry(R"({"dtype":"F4","shape":[2],"data_offsets":[0,8]})")),
                {"\"t\"", "\"F4\""});
  check_refused(parse(entry(R"({"dtype":"F32","data_offsets":[0,8]})")), {"\"t\"", "shape"});
  check_refused(parse(entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})")),
                {"\"t\"", "dimension -2"});
  check_refused(parse(entry(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})")),
                {"\"t\"", "dimension 2"});
  check_refused(parse(entry(R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})")),
                {"\"t\"", "9 dimensions"});
  check_refused(parse(entry(R"({"dtype":"F32","shape":[2]})")), {"\"t\"", "data_offsets"});
  check_refused(parse(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})")),
                {"\"t\"", "data_offsets"});
  check_refused(parse(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})")),
                {"\"t\"", "[8, 0]"});
  check_refused(parse(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})")),
                {"\"t\"", "[-8, 0]"});
}

TEST_CASE("shapes that do not match the bytes are refused, also when the product wraps") {
  check_refused(parse(entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})")),
                {"\"t\"", "8 bytes", "12"});
  check_refused(
      parse(entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})")),
      {"\"t\"", "too large"});
  check_refused(
      parse(entry(R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})", 4)),
      {"\"t\"", "too large"});
  check_refused(
      parse(entry(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8]})")),
      {"\"t\"", "dimension"});
}

TEST_CASE("holes, overlaps and bytes beyond or behind the tensors are refused") {
  const auto two = [](const std::string& first, const std::string& second) {
    return safetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
                           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}",
                       std::string(8, '\0'));
  };
  CHECK(parse(two("[0,4]", "[4,8]")).ok());
  CHECK(parse(two("[4,8]", "[0,4]")).ok());
  check_refused(parse(two("[0,4]", "[3,7]")), {"\"b\"", "byte 3", "expected 4"});
  check_refused(parse(two("[0,4]", "[5,9]")), {"\"b\"", "byte 5", "expected 4"});
  check_refused(parse(two("[1,5]", "[5,9]")), {"\"a\"", "byte 1", "expected 0"});
  check_refused(parse(two("[0,4]", "[0,4]")), {"byte 0", "expected 4"});
  check_refused(parse(entry(R"({"dtype":"U8","shape":[9],"data_offsets":[0,9]})")),
                {"\"t\"", "byte 9", "has 8"});
  check_refused(parse(entry(R"({"dtype":"U8","shape":[7],"data_offsets":[0,7]})")),
                {"byte 7", "has 8"});
}

TEST_CASE("a repeated tensor is refused") {
  const std::string one = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  check_refused(parse(safetensors(R"({"t":)" + one + R"(,"t":)" + one + "}", "")), {"\"t\" twice"});
}

TEST_CASE("an index may only name files beside itself") {
  const TempDir dir;
  const std::string path = dir.file("model.safetensors.index.json");
  write_file(
      path,
      R"({"metadata":{"total_size":8},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto index = read_safetensors_index(path);
  REQUIRE_MESSAGE(index.ok(), index.message());
  CHECK(index->at("b") == "two.safetensors");
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "a/b", "..", "", "a\\\\b", "a\\u0000b"}) {
    write_file(path, R"({"weight_map":{"a":")" + std::string(name) + "\"}}");
    check_refused(read_safetensors_index(path), {"index.json", "\"a\"", "beside the index"});
  }
  write_file(path, R"({"weight_map":{"a":7}})");
  check_refused(read_safetensors_index(path), {"\"a\"", "7"});
  write_file(path, R"({"map":{}})");
  check_refused(read_safetensors_index(path), {"weight_map"});
}
