// What was measured, on disk: it comes back whole or not at all.
#include "kernels/cuda/choices_file.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "kernels/cuda/build_id.h"
#include "tests/kernels/cuda/cache_folder.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;
namespace fs = std::filesystem;

namespace {

ChoicesOf some_device() { return {"Some GPU 80GB", "9.0", "13.0", "130100", "0.1.0 3f2a", "bf16"}; }

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}

const char* const kText = "BF16 512 96 128 tile\nQ4_0 512 96 256 cublas 1 2 3 4 5 6 7 8\n";

}  // namespace

TEST_CASE("choices come back from their file, new ones replace those of the same shape") {
  const CacheFolder folder;
  const std::string path = choices_path(folder.path() + "/a/b", some_device());
  auto read = read_choices(path, some_device());
  REQUIRE(read.ok());
  CHECK(read->empty());
  REQUIRE(add_choices(path, some_device(), choice_lines(kText)).ok());
  read = read_choices(path, some_device());
  REQUIRE(read.ok());
  CHECK(*read == choice_lines(kText));
  CHECK(read->at("BF16 512 96 128") == "BF16 512 96 128 tile");

  REQUIRE(add_choices(path, some_device(),
                      choice_lines("I8 32 32 128 tile\nBF16 512 96 128 cublas 1 1 1 1 1 1 1 1\n"))
              .ok());
  read = read_choices(path, some_device());
  REQUIRE(read.ok());
  CHECK(read->size() == 3);
  CHECK(read->at("BF16 512 96 128") == "BF16 512 96 128 cublas 1 1 1 1 1 1 1 1");
  CHECK(read->contains("Q4_0 512 96 256"));
  // Nothing else lies about.
  CHECK(std::distance(fs::directory_iterator(fs::path(path).parent_path()),
                      fs::directory_iterator()) == 1);
}

TEST_CASE("a file that was damaged anywhere is refused, and replaced by the next write") {
  const CacheFolder folder;
  const std::string path = choices_path(folder.path(), some_device());
  REQUIRE(add_choices(path, some_device(), choice_lines(kText)).ok());
  const std::string whole = read_text(path);
  for (size_t at = 0; at < whole.size(); ++at) {
    CAPTURE(at);
    std::string text = whole;
    text[at] = static_cast<char>(text[at] ^ 1);
    write_text(path, text);
    const auto read = read_choices(path, some_device());
    CHECK_FALSE(read.ok());
    CHECK(read.message().find(path) != std::string::npos);
    write_text(path, whole.substr(0, at));
    CHECK_FALSE(read_choices(path, some_device()).ok());
  }
  write_text(path, std::string(size_t{5} << 20, 'x'));
  CHECK(read_choices(path, some_device()).message().find("more than 4 MiB") != std::string::npos);
  REQUIRE(add_choices(path, some_device(), choice_lines(kText)).ok());
  CHECK(read_text(path) == whole);
}

TEST_CASE("a file of another device, driver, library, build or kind of activations is refused") {
  const CacheFolder folder;
  const std::string path = choices_path(folder.path(), some_device());
  REQUIRE(add_choices(path, some_device(), choice_lines(kText)).ok());
  for (std::string ChoicesOf::*field :
       {&ChoicesOf::device, &ChoicesOf::capability, &ChoicesOf::driver, &ChoicesOf::library,
        &ChoicesOf::build, &ChoicesOf::activations}) {
    ChoicesOf other = some_device();
    other.*field += "1";
    CHECK(choices_path(folder.path(), other) != path);
    const auto read = read_choices(path, other);  // one that was copied there
    REQUIRE_FALSE(read.ok());
    CHECK(read.message().find("of another device") != std::string::npos);
  }
}

TEST_CASE("what cannot be written says where") {
  const CacheFolder folder;
  write_text(folder.path() + "/file", "in the way");
  const std::string below = choices_path(folder.path() + "/file/cache", some_device());
  const auto added = add_choices(below, some_device(), choice_lines(kText));
  REQUIRE_FALSE(added.ok());
  CHECK(added.message().find(folder.path() + "/file/cache") != std::string::npos);
  CHECK(read_choices(below, some_device()).ok());  // there is none
  const std::string taken = choices_path(folder.path(), some_device());
  fs::create_directory(taken);
  CHECK_FALSE(read_choices(taken, some_device()).ok());
  CHECK_FALSE(add_choices(taken, some_device(), choice_lines(kText)).ok());
}

TEST_CASE("writers at the same time keep what each of them has") {
  const CacheFolder folder;
  const std::string path = choices_path(folder.path(), some_device());
  std::vector<std::thread> threads;
  std::vector<char> written(8);
  for (size_t i = 0; i < written.size(); ++i) {
    threads.emplace_back([&, i] {
      const std::string line = "BF16 " + std::to_string(16 * (i + 1)) + " 96 128 tile\n";
      written[i] = add_choices(path, some_device(), choice_lines(line)).ok() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(written == std::vector<char>(8, 1));
  const auto read = read_choices(path, some_device());
  REQUIRE(read.ok());
  CHECK(read->size() == 8);
}

TEST_CASE("the build says which it is") {
  CHECK(build_id().starts_with(UPDRAFT_VERSION));
  CHECK(build_id() == build_id());
  CHECK(build_id().size() > std::string(UPDRAFT_VERSION).size() + 8);  // the linker wrote one
}
