// Choosing products at start-up: measured once, read from then on, and never from a file that is
// not this device's. The library is played by plain loops.
#include "kernels/cuda/tune.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "kernels/cuda/wide_gemm_cublas_simt.h"
#include "kernels/simt/stream.h"
#include "tests/kernels/cuda/backend_support.h"
#include "tests/kernels/cuda/cache_folder.h"
#include "tests/kernels/cuda/gemm_support.h"
#include "tests/kernels/cuda/plain_cublas.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

ChoicesOf some_device() { return {"Some GPU", "9.0", "13.0", "plain", "1", "bf16"}; }

struct Bench {
  Problem narrow{DType::kQ4_0, 48, 64, 1};
  Problem wide{DType::kQ8_0, 96, 64, 1};
  std::vector<PlainCublas::Call> calls;
  std::unique_ptr<GemmDevice> device;
  Buffer<std::byte> in{"in", 300 * 64 * 2};
  Buffer<std::byte> out{"out", 300 * 96 * 4};
  std::optional<Buffer<std::byte>> scratch;
  int timed = 0;
  std::vector<std::string> notes;

  Bench() {
    auto opened = GemmDevice::open({4, 90}, std::make_unique<PlainCublas>(&calls));
    REQUIRE(opened.ok());
    device = std::move(*opened);
    scratch.emplace("scratch", std::max(gemm_scratch_bytes(*device, narrow.layout, 300),
                                        gemm_scratch_bytes(*device, wide.layout, 300)));
    std::fill_n(scratch->data(), kSkinnyCounterBytes, std::byte{0});
    std::fill_n(in.data(), in.size(), std::byte{0});
  }
  // Up to 300 tokens of the one, 128 of the other. Every third way is the fastest.
  TuneReport tune(const std::optional<TuneCache>& cache) {
    const std::vector<TunedProduct> products = {{narrow.layout, narrow.packed->data(), 300},
                                                {narrow.layout, narrow.packed->data(), 300},
                                                {wide.layout, wide.packed->data(), 128, true}};
    const GemmTimer timer = [&](const std::function<Result<void>()>&) -> Result<double> {
      return ++timed % 3 == 0 ? 1.0 : 2.0;
    };
    const auto report = tune_products(
        *device, products, {in.span(), out.span(), {}, {scratch->data(), scratch->size()}}, cache,
        timer, nullptr, [&](const std::string& line) { notes.push_back(line); }, {});
    REQUIRE_MESSAGE(report.ok(), report.message());
    return *report;
  }
};

// A group of one.
class Alone final : public Comm {
 public:
  int32_t rank() const override { return 0; }
  int32_t size() const override { return 1; }
  std::string description() const override { return "alone"; }
  Result<void> all_reduce(void*, int64_t, Values, CUstream_st*) override { return {}; }
};

}  // namespace

TEST_CASE(
    "each shape is measured once for each power of two of tokens, and read by the next start") {
  const CacheFolder folder;
  const TuneCache cache{folder.path(), some_device()};
  Bench first;
  const TuneReport measured = first.tune(cache);
  CHECK(measured.measured_count == 4);  // 128, 256 and 300 tokens; 128 of the other
  CHECK(measured.known_count == 0);
  CHECK(first.timed == 16);
  CHECK(first.notes.empty());
  for (const int32_t tokens : {65, 128, 129, 256, 257, 300}) {
    CAPTURE(tokens);
    const std::string key = GemmDevice::choice_key(first.narrow.layout, tokens);
    CHECK(first.device->choices_text().find(key + " ") != std::string::npos);
  }

  Bench second;
  const TuneReport known = second.tune(cache);
  CHECK(known.measured_count == 0);
  CHECK(known.known_count == 4);
  CHECK(second.timed == 0);
  CHECK(second.device->choices_text() == first.device->choices_text());

  Bench without;
  CHECK(without.tune({}).measured_count == 4);
}

TEST_CASE("a file that is of no use is noted once, measured anew and replaced") {
  const CacheFolder folder;
  const TuneCache cache{folder.path(), some_device()};
  const std::string path = choices_path(folder.path(), some_device());
  Bench first;
  first.tune(cache);
  const std::string whole = [&] {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }();
  std::string damaged = whole;
  damaged[whole.size() - 3] = '#';
  // Of the right form, with lines that are no choices.
  const CacheFolder aside;
  const std::string other = choices_path(aside.path(), some_device());
  ChoiceLines lines = choice_lines(first.device->choices_text());
  for (auto& [key, line] : lines) line = key + " fast";
  REQUIRE(add_choices(other, some_device(), lines).ok());
  std::ifstream nonsense(other, std::ios::binary);
  for (const std::string& text : {damaged, whole.substr(0, whole.size() / 2), std::string(),
                                  std::string(std::istreambuf_iterator<char>(nonsense), {})}) {
    CAPTURE(text);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
    Bench again;
    CHECK(again.tune(cache).measured_count == 4);
    REQUIRE(again.notes.size() == 1);
    CHECK(again.notes[0].find(path) != std::string::npos);
    CHECK(again.notes[0].ends_with("measured anew"));
    Bench then;
    CHECK(then.tune(cache).known_count == 4);
  }
  // Where nothing can be written a model starts nevertheless.
  const TuneCache nowhere{path, some_device()};
  Bench last;
  CHECK(last.tune(nowhere).measured_count == 4);
  REQUIRE(last.notes.size() == 1);
  CHECK(last.notes[0].ends_with("measured at each start"));
}

TEST_CASE("a model that starts measures its products, the next one reads them") {
  const CacheFolder folder;
  const auto model = bf16_model(gpu_hyperparameters(), 5);
  std::vector<PlainCublas::Call> calls;
  set_emulated_cublas([&calls] { return std::make_unique<PlainCublas>(&calls, simt::submit); });
  CudaConfig config;
  config.tune_folder = folder.path();
  int notes = 0;
  config.note = [&](const std::string&) { ++notes; };
  const auto prompt = random_tokens(70, 8);
  const auto start = [&](const CudaConfig& how, size_t* measured) {
    calls.clear();
    Runner run(*model, open_emulated(how));
    *measured = calls.size();
    Runner::Sequence sequence;
    return run.prefill(sequence, prompt);
  };
  size_t first = 0;
  size_t second = 0;
  size_t untuned = 0;
  const auto a = start(config, &first);
  const auto b = start(config, &second);
  CHECK(first > 0);
  CHECK(second == 0);
  CHECK(a == b);  // they take the same ways
  config.tune = false;
  (void)start(config, &untuned);
  CHECK(untuned == 0);
  CHECK(calls.size() > 0);  // the library's own guess
  CHECK(notes == 0);

  // {lines of the head, of all} in a folder's files.
  const auto lines_in = [](const std::string& place) {
    std::pair<size_t, size_t> out;
    for (const auto& entry : std::filesystem::directory_iterator(place)) {
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) {
        out.first += line.starts_with("BF16 96 96 ") ? 1 : 0;
        out.second += line.starts_with("BF16 ") ? 1 : 0;
      }
    }
    return out;
  };
  CHECK(lines_in(folder.path()) == std::pair<size_t, size_t>(1, 5));
  // What each device of a group computes alike, the head, is not left to each one's clock.
  const CacheFolder of_group;
  config.tune = true;
  config.tune_folder = of_group.path();
  config.comm = std::make_shared<Alone>();
  (void)start(config, &first);
  CHECK(first > 0);
  CHECK(lines_in(of_group.path()) == std::pair<size_t, size_t>(0, 4));
  set_emulated_cublas({});
}
