// Who may include whom: the table of ARCHITECTURE.md, checked against every #include "..." in the
// tree, and the libraries that have one home, checked against every #include <...>.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "tests/support/shared_data.h"

namespace fs = std::filesystem;
using updraft::testing::repo_file;

namespace {

// Folder -> folders it may include besides itself. A header given by name stands for that header
// alone.
const std::map<std::string, std::set<std::string>> kAllowed = {
    {"common/base", {}},
    {"common/log", {"common/base"}},
    {"common/metrics", {"common/base"}},
    {"common/config", {"common/base"}},
    {"common/message", {"common/base", "schemas"}},
    {"common/ipc", {"common/base"}},
    {"common/net", {"common/base"}},
    {"kernels/quant", {"common/base"}},
    {"kernels", {"common/base", "kernels/quant"}},
    {"kernels/parallel", {"common/base", "kernels", "kernels/quant"}},
    {"kernels/cpu", {"common/base", "kernels", "kernels/quant", "kernels/parallel"}},
    {"kernels/simt", {"common/base", "kernels/quant"}},
    {"kernels/module", {"common/base", "kernels", "kernels/quant", "kernels/parallel"}},
    {"kernels/cuda",
     {"common/base", "kernels", "kernels/quant", "kernels/simt", "kernels/module",
      "kernels/parallel"}},
    {"common/model", {"common/base", "kernels", "kernels/quant"}},
    {"common/text", {"common/base", "common/model"}},
    {"common/image", {"common/base"}},
    {"common/json", {"common/base"}},
    {"common/auth", {"common/base", "common/json"}},
    {"common/http",
     {"common/base", "common/json", "common/auth", "common/config", "common/message",
      "common/metrics", "common/image"}},
    {"common/pool", {"common/base", "common/message", "common/net", "common/log", "common/config"}},
    {"common/engine",
     {"common/base", "common/message", "common/model", "kernels", "kernels/quant"}},
    {"common/serve",
     {"common/base", "common/message", "common/model", "common/text", "common/engine", "kernels",
      "kernels/quant", "kernels/cpu", "kernels/module", "kernels/parallel"}},
    {"common/daemon",
     {"common/base", "common/log", "common/metrics", "common/config", "common/message",
      "common/net", "common/auth", "common/http", "common/pool", "common/serve"}},
    {"edge/client", {"common/base", "common/message", "common/ipc", "common/net"}},
    {"edge",
     {"common/base", "common/log", "common/metrics", "common/config", "common/message",
      "common/ipc", "common/net", "common/image", "common/auth", "common/http", "common/pool",
      "common/serve", "common/daemon"}},
    {"cloud/node",
     {"common/base", "common/log", "common/metrics", "common/config", "common/message",
      "common/net", "common/auth", "common/http", "common/pool", "common/serve", "common/daemon"}},
    {"cloud/router",
     {"common/base", "common/log", "common/metrics", "common/config", "common/message",
      "common/net", "common/auth", "common/http"}},
};

// Third-party headers, and those of one processor family, with the folders (or the begin of the
// paths) that may name them.
const std::vector<std::pair<std::regex, std::set<std::string>>> kHomes = {
    {std::regex("^spdlog/.*"), {"common/log"}},
    {std::regex("^toml\\+\\+/.*"), {"common/config"}},
    {std::regex("^prometheus/.*"), {"common/metrics"}},
    {std::regex("^(zmq\\.h|zmq\\.hpp|zmq_addon\\.hpp)$"),
     {"common/net", "tools/bench"}},  // bench: as a peer to compare with
    {std::regex("^iceoryx_.*"), {"tools/bench/ipc_peer_iceoryx.cpp"}},
    {std::regex("^flatbuffers/.*"), {"common/message"}},
    {std::regex("^pcre2\\.h$"), {"common/text"}},
    {std::regex("^boost/interprocess/.*"), {"common/ipc", "edge/client"}},
    {std::regex("^boost/(beast|asio|json).*"),
     {"common/json", "common/auth", "common/http", "common/text",
      "tools"}},  // text: tool definitions as templates print them
    {std::regex("^openssl/.*"), {"common/auth/crypto", "common/http/tls"}},
    {std::regex("^(png|jpeglib)\\.h$"), {"common/image"}},
    {std::regex("^CLI/.*"), {"tools"}},
    {std::regex("^immintrin\\.h$"), {"kernels/cpu/vec_avx", "kernels/cpu/peak_avx"}},
    {std::regex("^arm_neon\\.h$"), {"kernels/cpu/vec_neon", "kernels/cpu/peak_neon"}},
    {std::regex("^sys/auxv\\.h$"), {"kernels/cpu/isa_arm.cpp"}},
    {std::regex("^cuda.*"),
     {"kernels/cuda/device_cuda.h", "kernels/cuda/runtime_gpu.cpp",
      "kernels/cuda/tensor_map_gpu.cpp", "kernels/cuda/wide_gemm_cublas_gpu.cpp",
      "tools/gpu/ceilings.cu", "tests/kernels/cuda/memory_gpu.h", "tests/support/gpu_main.cpp"}},
    {std::regex("^cublas.*"), {"kernels/cuda/wide_gemm_cublas_gpu.cpp", "tools/gpu/ceilings.cu"}},
    {std::regex("^sanitizer/.*"), {"kernels/simt/sanitizers.h"}},
    {std::regex("^ucontext\\.h$"), {"kernels/simt/fiber.cpp"}},
};

struct Include {
  std::string file;  // relative to the root
  std::string folder;
  std::string target;
  bool quoted = false;
};

std::vector<Include> read_includes() {
  std::vector<Include> out;
  const std::regex pattern("^\\s*#\\s*include\\s*([\"<])([^\">]+)[\">]");
  const fs::path root = repo_file("");
  for (const char* top : {"common", "kernels", "edge", "cloud", "tools"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu") continue;
      const fs::path relative = fs::relative(entry.path(), root);
      std::ifstream in(entry.path());
      std::string line;
      std::smatch match;
      while (std::getline(in, line)) {
        if (std::regex_search(line, match, pattern)) {
          out.push_back(
              {relative.string(), relative.parent_path().string(), match[2], match[1] == "\""});
        }
      }
    }
  }
  return out;
}

std::string folder_of(const std::string& path) { return fs::path(path).parent_path().string(); }

}  // namespace

TEST_CASE("every folder includes only what stands below it in the table") {
  const std::vector<Include> includes = read_includes();
  CHECK(includes.size() > 200);
  for (const Include& include : includes) {
    if (!include.quoted || include.folder.rfind("tools", 0) == 0)
      continue;  // tools stand on top of everything
    const auto row = kAllowed.find(include.folder);
    CHECK_MESSAGE(row != kAllowed.end(),
                  std::string(include.folder + " is not in the include table"));
    if (row == kAllowed.end()) continue;
    const std::string target = folder_of(include.target);
    const bool allowed = target == include.folder || row->second.count(target) != 0;
    CHECK_MESSAGE(allowed, std::string(include.file + " includes " + include.target));
  }
}

TEST_CASE("each third-party library is named only in its home") {
  for (const Include& include : read_includes()) {
    if (include.quoted) continue;
    for (const auto& [pattern, homes] : kHomes) {
      if (!std::regex_match(include.target, pattern)) continue;
      const bool home = std::any_of(homes.begin(), homes.end(), [&](const std::string& h) {
        return include.file.rfind(h, 0) == 0;
      });
      CHECK_MESSAGE(home, std::string(include.file + " includes <" + include.target + ">"));
    }
  }
}

TEST_CASE("generated FlatBuffers types never leave the codecs") {
  for (const Include& include : read_includes()) {
    if (include.target.rfind("schemas/", 0) != 0) continue;
    CHECK_MESSAGE((include.folder == "common/message" && include.file.ends_with(".cpp")),
                  std::string(include.file + " includes " + include.target));
  }
}

TEST_CASE("no cycles: the table itself goes down only") {
  std::set<std::string> done;
  for (size_t round = 0; round <= kAllowed.size(); ++round) {
    for (const auto& [folder, below] : kAllowed) {
      const bool ready = std::all_of(below.begin(), below.end(), [&](const std::string& b) {
        return b == "schemas" || done.count(b) != 0;
      });
      if (ready) done.insert(folder);
    }
  }
  CHECK(done.size() == kAllowed.size());
}
