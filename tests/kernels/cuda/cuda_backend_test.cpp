// The CUDA backend, over the emulator, against the double-precision backend: whole forward passes
// of small models.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>

#include "kernels/cuda/device_budget.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/runtime_simt.h"
#include "kernels/cuda/wide_gemm_cublas_simt.h"
#include "kernels/simt/watch.h"
#include "tests/common/engine/reference_backend.h"
#include "tests/kernels/cuda/backend_support.h"
#include "tests/kernels/cuda/plain_cublas.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

TEST_CASE("every architecture gives the reference's logits, whole and in chunks") {
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kQwen2, Architecture::kQwen3, Architecture::kGlm4}) {
    CAPTURE(architecture_name(architecture));
    const auto model = bf16_model(gpu_hyperparameters(architecture), 17);
    const std::vector<int32_t> tokens = random_tokens(40, 3);
    Runner reference(*model, std::make_unique<updraft::testing::ReferenceBackend>());
    Runner::Sequence by_reference;
    const auto expected = reference.step(by_reference, tokens);

    std::vector<std::vector<float>> whole;
    Runner run(*model, open_emulated());
    for (const size_t chunk : {40, 33, 1}) {
      CAPTURE(chunk);
      Runner::Sequence sequence;
      std::vector<std::vector<float>> logits;
      for (size_t at = 0; at < tokens.size(); at += chunk) {
        const auto first = tokens.begin() + static_cast<ptrdiff_t>(at);
        const auto count = static_cast<ptrdiff_t>(std::min(chunk, tokens.size() - at));
        for (auto& row : run.step(sequence, {first, first + count})) logits.push_back(row);
      }
      run.release(sequence);
      CHECK(worst(logits, expected) < 2e-2);
      if (chunk == 40) whole = logits;
      CHECK(worst(logits, whole) < 1e-2);
    }
  }
}

namespace {

// Which of three sequences decode together, step by step.
const std::vector<std::vector<size_t>> kTogether = {
    {0, 1, 2}, {0}, {1, 2}, {0, 1, 2}, {2}, {0, 1}, {0}, {1, 2}, {0, 1, 2}, {0, 2}, {2}, {0, 1, 2},
};

// Logits [sequence][step of its own, the prompt's last row first]; `together` false: every row in a
// step of its own.
std::vector<std::vector<std::vector<float>>> decode_company(Runner& run, bool together) {
  const std::vector<size_t> lengths = {5, 20, 33};
  std::vector<Runner::Sequence> sequences(3);
  std::vector<std::vector<std::vector<float>>> out(3);
  std::vector<size_t> steps(3);
  for (size_t s = 0; s < 3; ++s) {
    const auto seed = static_cast<uint32_t>(s);
    out[s].push_back(run.prefill(sequences[s], random_tokens(lengths[s], seed)));
  }
  for (const std::vector<size_t>& company : kTogether) {
    std::vector<Runner::Part> parts;
    for (const size_t s : company) {
      const auto seed = static_cast<uint32_t>(100 * s + steps[s]++);
      parts.push_back({&sequences[s], random_tokens(1, seed)});
    }
    if (together) {
      const auto logits = run.step(parts);
      for (size_t i = 0; i < company.size(); ++i) out[company[i]].push_back(logits[i]);
    } else {
      for (size_t i = 0; i < company.size(); ++i)
        out[company[i]].push_back(run.step({parts[i]})[0]);
    }
  }
  return out;
}

}  // namespace

TEST_CASE(
    "a prompt in chunks, alone or beside rows that decode, gives the bits of the whole prompt") {
  const auto model = bf16_model(gpu_hyperparameters(Architecture::kQwen3), 6);
  const std::vector<int32_t> tokens = random_tokens(60, 1);
  const std::vector<int32_t> last = {7};
  Runner reference(*model, std::make_unique<updraft::testing::ReferenceBackend>());
  Runner::Sequence by_reference;
  const auto expected = reference.prefill(by_reference, tokens);

  Runner run(*model, open_emulated());
  Runner::Sequence sequence;
  const auto whole = run.prefill(sequence, tokens);
  CHECK(worst({whole}, {expected}) < 2e-2);
  const auto whole_next = run.step(sequence, last)[0];
  run.release(sequence);
  Runner::Sequence beside;
  const auto beside_first = run.prefill(beside, {1, 2, 3});
  const auto beside_next = run.step(beside, {4})[0];
  run.release(beside);
  for (const bool mixed : {false, true}) {
    for (const int32_t chunk : {59, 40, 17, 4}) {  // of 59 the second is a single row
      CAPTURE(mixed);
      CAPTURE(chunk);
      CHECK(run.prefill(beside, {1, 2, 3}) == beside_first);
      std::vector<std::vector<float>> logits;
      for (int32_t at = 0; at < 60; at += chunk) {
        const auto first = tokens.begin() + at;
        const int32_t count = std::min(chunk, 60 - at);
        const bool in_company = mixed && at + count == 60;
        std::vector<Runner::Part> parts;
        if (in_company) parts.push_back({&beside, {4}});
        parts.push_back({&sequence, {first, first + count}, count});
        logits = run.step(parts, Runner::Wanted::kLast);
        if (in_company) CHECK(logits[0] == beside_next);
      }
      CHECK(logits.back() == whole);
      CHECK(run.step(sequence, last)[0] == whole_next);
      run.release(sequence);
      run.release(beside);
    }
  }
}

TEST_CASE("an answer that is computed again, in one step with its prompt or not, has its bits") {
  const auto model = bf16_model(gpu_hyperparameters(), 6);
  Runner run(*model, open_emulated());
  const std::vector<int32_t> tokens = random_tokens(30, 4);
  Runner::Sequence sequence;
  std::vector<float> expected = run.prefill(sequence, {tokens.begin(), tokens.begin() + 25});
  for (size_t i = 25; i < 30; ++i) expected = run.step(sequence, {tokens[i]})[0];
  run.release(sequence);
  for (const int32_t cut : {0, 20, 24, 25, 27}) {
    CAPTURE(cut);
    if (cut > 0) {
      run.step({{&sequence, {tokens.begin(), tokens.begin() + cut}, std::min(cut, 25)}},
               Runner::Wanted::kLast);
    }
    const auto again =
        run.step({{&sequence, {tokens.begin() + cut, tokens.end()}, std::max(0, 25 - cut)}},
                 Runner::Wanted::kLast);
    CHECK(again[0] == expected);
    run.release(sequence);
  }
}

TEST_CASE("drafts under test give the bits of tokens one by one") {
  const auto model = bf16_model(gpu_hyperparameters(), 6);
  Runner run(*model, open_emulated());
  Runner::Sequence sequence;
  const std::vector<int32_t> drafts = random_tokens(5, 3);
  run.prefill(sequence, random_tokens(20, 2));
  std::vector<std::vector<float>> expected;
  for (const int32_t token : drafts) expected.push_back(run.step(sequence, {token})[0]);
  sequence.cached = 20;
  CHECK(run.step(sequence, drafts) == expected);
}

TEST_CASE("a replayed step gives an eager one's bits, and a row alone those of a row in company") {
  const auto model = bf16_model(gpu_hyperparameters(Architecture::kQwen3), 4);
  CudaConfig eager;
  eager.graphs = false;
  Runner by_name(*model, open_emulated(eager));
  const auto expected = decode_company(by_name, true);
  CHECK(cuda_counters(*by_name.backend).replayed_steps == 0);

  Runner alone(*model, open_emulated(eager));
  CHECK(decode_company(alone, false) == expected);

  Runner replayed(*model, open_emulated());
  CHECK(decode_company(replayed, true) == expected);
  CHECK(cuda_counters(*replayed.backend).graphs == 3);  // of one row, two and four
  CHECK(cuda_counters(*replayed.backend).replayed_steps == 9);
}

TEST_CASE(
    "a device whose graphs do not work runs its steps without, and says so when it is opened") {
  const auto model = bf16_model(gpu_hyperparameters(), 31);
  const auto prompt = random_tokens(20, 8);
  const auto answer = [&](const CudaConfig& config, int64_t* graphs) {
    Runner run(*model, open_emulated(config));
    Runner::Sequence sequence;
    run.prefill(sequence, prompt);
    std::vector<std::vector<float>> logits;
    for (int i = 0; i < 3; ++i) logits = run.step(sequence, {i});
    *graphs = cuda_counters(*run.backend).graphs;
    return logits;
  };
  int64_t graphs = 0;
  CudaConfig config;
  std::vector<std::string> notes;
  config.note = [&](const std::string& line) { notes.push_back(line); };
  const auto captured = answer(config, &graphs);
  CHECK(graphs > 0);
  CHECK(notes.empty());
  set_emulated_devices({.captures = false});
  const auto by_name = answer(config, &graphs);
  set_emulated_devices({});
  CHECK(graphs == 0);
  REQUIRE(notes.size() == 1);
  CHECK(notes[0].find("graphs do not work here: cuda: no capture here") != std::string::npos);
  CHECK(by_name == captured);
}

TEST_CASE("graphs of a pool that was made anew do not reach into the old one") {
  const auto model = bf16_model(gpu_hyperparameters(), 4);
  Runner run(*model, open_emulated());
  const auto expected = decode_company(run, true);
  CHECK(cuda_counters(*run.backend).graphs == 3);
  KvShape shape = Forward::kv_shape(model->hyperparameters());
  shape.page_tokens = Runner::kPageTokens;
  shape.page_count = 2 * Runner::kPages;
  shape.type = DType::kBF16;
  shape.context_tokens = 512;
  REQUIRE(run.backend->make_kv_pool(shape).ok());
  CHECK(decode_company(run, true) == expected);
}

TEST_CASE("two backends whose graphs take turns give what each gives alone") {
  const auto model = bf16_model(gpu_hyperparameters(), 4);
  const auto other_model = bf16_model(gpu_hyperparameters(Architecture::kGlm4), 5);
  const std::vector<int32_t> tokens = random_tokens(8, 1);
  std::vector<std::vector<float>> expected[2];
  for (int i = 0; i < 2; ++i) {
    Runner run(i == 0 ? *model : *other_model, open_emulated());
    Runner::Sequence sequence;
    for (const int32_t token : tokens) expected[i].push_back(run.step(sequence, {token})[0]);
  }
  Runner first(*model, open_emulated());
  Runner second(*other_model, open_emulated());
  Runner::Sequence a;
  Runner::Sequence b;
  for (size_t i = 0; i < tokens.size(); ++i) {
    CHECK(first.step(a, {tokens[i]})[0] == expected[0][i]);
    CHECK(second.step(b, {tokens[i]})[0] == expected[1][i]);
  }
}

TEST_CASE("two steps under way, pages used anew at once: each sequence gets its own tokens") {
  const auto model = bf16_model(gpu_hyperparameters(), 11);
  constexpr size_t kSequences = 7;
  constexpr int32_t kTokens = 11;
  const auto prompt = [](size_t s) {
    return random_tokens(1 + s % 3, static_cast<uint32_t>(50 + s));
  };

  // Alone, one step at a time.
  std::vector<std::vector<int32_t>> expected(kSequences);
  {
    CudaConfig eager;
    eager.graphs = false;
    Runner run(*model, open_emulated(eager));
    for (size_t s = 0; s < kSequences; ++s) {
      Runner::Sequence sequence;
      int32_t token = 0;
      for (const int32_t id : prompt(s)) token = best(run.step(sequence, {id})[0]);
      for (int32_t i = 0; i < kTokens; ++i) {
        expected[s].push_back(token);
        token = best(run.step(sequence, {token})[0]);
      }
      run.release(sequence);
    }
  }
  for (const simt::StreamOrder& order : {simt::StreamOrder{simt::Eagerness::kMixed, 1},
                                         simt::StreamOrder{simt::Eagerness::kAtWait, 2},
                                         simt::StreamOrder{simt::Eagerness::kAtOnce, 3}}) {
    CAPTURE(static_cast<int>(order.eagerness));
    set_stream_order(order);
    Runner run(*model, open_emulated());
    struct Live {
      size_t index = 0;
      Runner::Sequence sequence;
      size_t prompt_done = 0;
      int32_t begun = 0;  // steps that give an answer's token
      int32_t row = -1;   // of the newest step
    };
    std::vector<Live> live;
    std::vector<std::vector<int32_t>> got(kSequences);
    std::vector<std::vector<size_t>>
        in_flight;  // whose token each logit row is; kSequences: nobody's
    size_t next = 0;
    std::mt19937 random(7);
    const auto read = [&] {
      const auto tokens = run.backend->read_tokens();
      REQUIRE(tokens.size() == in_flight.front().size());
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (in_flight.front()[i] != kSequences) got[in_flight.front()[i]].push_back(tokens[i]);
      }
      in_flight.erase(in_flight.begin());
    };
    while (next < kSequences || !live.empty()) {
      while (live.size() < 4 && next < kSequences && (live.empty() || random() % 2 == 0)) {
        live.push_back({next++, {}, 0, 0, -1});
      }
      std::vector<Runner::Row> rows;
      std::vector<size_t> owners;
      for (Live& one : live) {
        const std::vector<int32_t> ids = prompt(one.index);
        const bool in_prompt = one.prompt_done < ids.size();
        rows.push_back(
            {&one.sequence, in_prompt ? ids[one.prompt_done] : 0, in_prompt ? -1 : one.row});
        one.row = static_cast<int32_t>(owners.size());
        if (in_prompt) ++one.prompt_done;
        const bool answers = one.prompt_done == ids.size();
        owners.push_back(answers ? one.index : kSequences);
        if (answers) ++one.begun;
      }
      run.begin_sampled(rows);
      in_flight.push_back(owners);
      // Their last step is under way: the pages go to whoever is next.
      for (auto it = live.begin(); it != live.end();) {
        if (it->begun == kTokens) {
          run.release(it->sequence);
          it = live.erase(it);
        } else {
          ++it;
        }
      }
      if (in_flight.size() == 2) read();
    }
    while (!in_flight.empty()) read();
    for (size_t s = 0; s < kSequences; ++s) {
      CAPTURE(s);
      CHECK(got[s] == expected[s]);
    }
    CHECK(cuda_counters(*run.backend).replayed_steps > 20);
  }
  set_stream_order({});
}

TEST_CASE("the device chooses as asked, and never what is banned") {
  const auto model = bf16_model(gpu_hyperparameters(), 3);
  Runner run(*model, open_emulated());
  Runner::Sequence sequence;
  const std::vector<float> logits = run.step(sequence, {7})[0];
  const int32_t likeliest = best(logits);
  run.release(sequence);
  const auto chosen = [&](const RowSampling& how) {
    run.begin_sampled({{&sequence, 7, -1}}, {how});
    const int32_t token = run.backend->read_tokens()[0];
    run.release(sequence);
    return token;
  };
  CHECK(chosen({}) == likeliest);
  CHECK(chosen({5.0F, 0.0F, 1.0F, 1, 0.999}) == likeliest);  // the one of top_k = 1
  // Hot enough, the last in order of id that the draw can reach is the last token.
  CHECK(chosen({1000.0F, 0.0F, 1.0F, 0, 0.9999}) == 95);
  CHECK(chosen({1000.0F, 0.0F, 1.0F, 0, 0.0}) == 0);
  CHECK(run.backend->never_sample(std::vector<int32_t>{0, 95, likeliest, 400, -3}));
  std::vector<float> without = logits;
  without[static_cast<size_t>(likeliest)] = without[0] = without[95] = -INFINITY;
  for (int i = 0; i < 3; ++i) {  // named, captured, replayed
    CHECK(chosen({}) == best(without));
    CHECK(chosen({1000.0F, 0.0F, 1.0F, 0, 0.9999}) == 94 - (likeliest == 94 ? 1 : 0));
  }
  CHECK(run.step(sequence, {7})[0] == logits);  // who reads logits has them all
}

TEST_CASE("given rows stand in place of tokens, alone and among tokens") {
  const auto model = bf16_model(gpu_hyperparameters(), 21);
  const std::vector<int32_t> ids = {5, -1, -2, 9, -1, 3};
  std::vector<float> given(3 * 96);
  std::mt19937 random(5);
  for (float& v : given) v = static_cast<float>(random() % 1000) / 500.0F - 1.0F;
  const auto logits_of = [&](Runner& run, std::vector<int32_t> tokens,
                             std::span<const float> rows) {
    std::vector<int32_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), 0);
    std::vector<int32_t> all = positions;
    Runner::Sequence sequence;
    run.reserve(sequence, static_cast<int32_t>(tokens.size()));
    const SequenceSlice slice{0, static_cast<int32_t>(tokens.size()), 0, sequence.pages};
    Batch batch{tokens, positions, {&slice, 1}, all, rows};
    const auto logits = run.forward->run(*run.backend, batch);
    run.release(sequence);
    return std::vector<std::vector<float>>{{logits.begin(), logits.end()}};
  };
  Runner reference(*model, std::make_unique<updraft::testing::ReferenceBackend>());
  Runner run(*model, open_emulated());
  CHECK(worst(logits_of(run, ids, given), logits_of(reference, ids, given)) < 2e-2);
  const std::span<const float> one = std::span<const float>(given).first(96);
  CHECK(worst(logits_of(run, {-1}, one), logits_of(reference, {-1}, one)) < 2e-2);
}

TEST_CASE("pages are copied, and go to the swap space and back") {
  const auto model = bf16_model(gpu_hyperparameters(), 8);
  Runner run(*model, open_emulated());
  const std::vector<int32_t> tokens = random_tokens(30, 2);
  Runner::Sequence sequence;
  run.step(sequence, tokens);
  Runner::Sequence other = sequence;
  other.pages.clear();
  run.reserve(other, 0);
  for (size_t i = 0; i < sequence.pages.size(); ++i)
    run.backend->copy_page(sequence.pages[i], other.pages[i]);
  REQUIRE(run.backend->make_swap_space(2).ok());
  Runner::Sequence third = sequence;
  third.pages.clear();
  run.reserve(third, 0);
  REQUIRE(sequence.pages.size() == 2);
  for (int32_t i = 0; i < 2; ++i) run.backend->swap_out(sequence.pages[static_cast<size_t>(i)], i);
  const auto expected = run.step(sequence, {4})[0];
  for (int32_t i = 0; i < 2; ++i) run.backend->swap_in(i, third.pages[static_cast<size_t>(i)]);
  CHECK(run.step(other, {4})[0] == expected);
  CHECK(run.step(third, {4})[0] == expected);
  // Both moves are over, and were timed.
  const int64_t first_ns = run.backend->swap_ns();
  CHECK(first_ns > 0);
  CHECK(run.backend->swap_ns() == first_ns);
  run.backend->swap_out(sequence.pages[0], 0);
  (void)run.backend->swap_ns();
  run.step(other, {5});
  CHECK(run.backend->swap_ns() > first_ns);
}

TEST_CASE("parts of several formats are one matrix") {
  // Rows that are no multiple of 16 end a packed matrix; Q5_0 is kept as bfloat16.
  constexpr int64_t kCols = 64;
  struct Part {
    DType type;
    int64_t rows;
  };
  const std::vector<Part> parts = {{DType::kQ8_0, 32}, {DType::kQ8_0, 24}, {DType::kQ8_0, 16},
                                   {DType::kQ4_0, 16}, {DType::kQ5_0, 16}, {DType::kF16, 16}};
  std::vector<std::vector<std::byte>> bytes;
  std::vector<WeightView> views;
  uint32_t seed = 1;
  int64_t rows = 0;
  for (const Part& part : parts) {
    bytes.emplace_back(static_cast<size_t>(part.rows * row_bytes(part.type, kCols)));
    std::vector<float> values(kCols);
    for (int64_t r = 0; r < part.rows; ++r) {
      std::mt19937 random(seed++);
      for (float& v : values) v = static_cast<float>(random() % 200) / 100.0F - 1.0F;
      quantize_row(part.type, values, bytes.back().data() + r * row_bytes(part.type, kCols));
    }
    rows += part.rows;
  }
  for (size_t i = 0; i < parts.size(); ++i)
    views.push_back({bytes[i].data(), parts[i].type, parts[i].rows, kCols});
  const auto run = [&](Backend& backend) {
    std::vector<float> table(16 * kCols);
    std::mt19937 random(9);
    for (float& v : table) v = static_cast<float>(random() % 128) / 64.0F;
    std::vector<float> ones(kCols, 1.0F);
    std::vector<float> bias(static_cast<size_t>(rows));
    for (size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i);
    const WeightView embedding{reinterpret_cast<const std::byte*>(table.data()), DType::kF32, 16,
                               kCols};
    const Mat e = *backend.add_matrix({&embedding, 1});
    const Mat w = *backend.add_matrix(views);
    const Vec norm = *backend.add_vector(ones);
    const Vec b = *backend.add_vector(bias);
    const Act hidden = *backend.add_residual(8, kCols);
    const Act x = *backend.add_activation(8, kCols);
    const Act y = *backend.add_activation(8, rows);
    REQUIRE(backend.reserve_logits(8, 16).ok());
    KvShape shape{1, 1, 64, 16, 4, DType::kBF16};
    REQUIRE(backend.make_kv_pool(shape).ok());
    const std::vector<int32_t> ids = {1, 5, 9};
    const std::vector<int32_t> positions = {0, 1, 2};
    const std::vector<int32_t> pages = {0};
    const SequenceSlice slice{0, 3, 0, pages};
    backend.begin({ids, positions, {&slice, 1}, {}});
    backend.embed(e, hidden);
    backend.residual_norm({hidden, kNoAct, kNoVec, norm, 1e-5F, x});
    backend.matmul(w, b, x, y);
    backend.end();
    std::vector<float> out(static_cast<size_t>(3 * rows));
    backend.read_activation(y, 3, out);
    return std::vector<std::vector<float>>{out};
  };
  updraft::testing::ReferenceBackend reference;
  const auto device = open_emulated();
  CHECK(worst(run(*device), run(reference)) < 1e-2);
}

TEST_CASE("what does not fit is refused with the figures") {
  const auto model = bf16_model(gpu_hyperparameters(), 8);
  CudaConfig config;
  config.max_memory_bytes = 1 << 20;
  const auto backend = open_emulated(config);
  CHECK(backend->memory_total_bytes() == 1 << 20);
  const auto forward = Forward::create(*model, *backend, {4096, 8}, {});
  REQUIRE(!forward.ok());
  CHECK(forward.message().find("of 1 MiB that max_memory allows are taken") != std::string::npos);
  // Without a limit, or with one beyond the GPU, something is left for what steps take.
  for (const uint64_t limit : {uint64_t{0}, uint64_t{1} << 40}) {
    config.max_memory_bytes = limit;
    const auto figures = memory_figures();
    REQUIRE(figures.ok());
    CHECK(open_emulated(config)->memory_total_bytes() == plannable_bytes(figures->free_bytes));
  }
  CHECK(plannable_bytes(uint64_t{1} << 30) == uint64_t{896} << 20);
  CHECK(plannable_bytes(uint64_t{80} << 30) == (uint64_t{80} << 30) - (uint64_t{1792} << 20));
  config.device = 3;
  CHECK(open_cuda_backend(config).message() == "cuda: GPU 3 of 1");
  set_emulated_devices({.count = 0});
  CHECK(open_cuda_backend({}).message() == "cuda: no GPU on this machine");
  set_emulated_devices({});
}

TEST_CASE("what a step takes is planned with: the scratch of a 9B model's products too") {
  std::vector<PlainCublas::Call> calls;
  set_emulated_cublas([&calls] { return std::make_unique<PlainCublas>(&calls); });
  const auto backend = open_emulated();
  set_emulated_cublas({});
  const auto without = open_emulated();
  auto device = GemmDevice::open({4, 80}, std::make_unique<PlainCublas>(&calls));
  REQUIRE(device.ok());
  KvShape shape;
  shape.layer_count = 40;
  shape.kv_head_count = 2;
  shape.head_dim = 128;
  shape.head_count = 32;
  shape.page_tokens = 64;
  shape.context_tokens = 8192;
  for (const int32_t rows : {256, 2048, 8192}) {
    const uint64_t planned =
        backend->scratch_bytes(shape, rows) - without->scratch_bytes(shape, rows);
    for (const auto& [out, in] : {std::pair{4608, 4096}, {27392, 4096}, {4096, 13696}}) {
      CAPTURE(rows);
      CAPTURE(out);
      const auto layout = PackedLayout::of(DType::kQ4_0, out, in);
      REQUIRE(layout.ok());
      CHECK(gemm_scratch_bytes(**device, *layout, rows) <= planned);
    }
  }
}

TEST_CASE("a backend that goes gives all its memory back") {
  const uint64_t before = emulated_memory_used_bytes();
  {
    const auto model = bf16_model(gpu_hyperparameters(), 8);
    Runner run(*model, open_emulated());
    Runner::Sequence sequence;
    run.step(sequence, {1, 2, 3});
    CHECK(run.backend->memory_used_bytes() == emulated_memory_used_bytes() - before);
    CHECK(run.backend->memory_used_bytes() > 1 << 20);
  }
  CHECK(emulated_memory_used_bytes() == before);
}

TEST_CASE("weights that find no room are streamed, and give the bits of those that do") {
  const auto model = bf16_model(gpu_hyperparameters(Architecture::kGlm4), 12);
  CudaConfig eager;
  eager.graphs = false;
  Runner resident(*model, open_emulated(eager));
  const auto expected = decode_company(resident, true);
  for (const simt::StreamOrder& order : {simt::StreamOrder{simt::Eagerness::kMixed, 1},
                                         simt::StreamOrder{simt::Eagerness::kAtWait, 3},
                                         simt::StreamOrder{simt::Eagerness::kAtOnce, 4}}) {
    set_stream_order(order);
    for (const uint64_t room : {uint64_t{1}, uint64_t{400} << 10}) {
      CAPTURE(room);
      auto backend = open_emulated();
      backend->set_weight_rooms({&room, 1});
      Runner run(*model, std::move(backend));
      CHECK(run.backend->description().find("weight matrices in host memory") != std::string::npos);
      if (room == 1)
        CHECK(run.backend->memory_used_bytes() < resident.backend->memory_used_bytes());
      CHECK(decode_company(run, true) == expected);
      // A chunk without logits stops before the last layer's end; what follows is in order again.
      Runner::Sequence sequence;
      run.reserve(sequence, 4);
      const std::vector<int32_t> ids = {1, 2, 3};
      const std::vector<int32_t> positions = {0, 1, 2};
      const SequenceSlice slice{0, 3, 0, sequence.pages};
      run.forward->start(*run.backend, {ids, positions, {&slice, 1}, {}});
      sequence.cached = 3;
      const auto behind = run.prefill(sequence, {4});
      Runner::Sequence whole;
      resident.reserve(whole, 4);
      const SequenceSlice same{0, 3, 0, whole.pages};
      resident.forward->start(*resident.backend, {ids, positions, {&same, 1}, {}});
      whole.cached = 3;
      CHECK(behind == resident.prefill(whole, {4}));
      resident.release(whole);
    }
  }
  set_stream_order({});
}

TEST_CASE("float weights in e4m3 are near those of the file") {
  const auto model = bf16_model(gpu_hyperparameters(), 12);
  Runner reference(*model, std::make_unique<updraft::testing::ReferenceBackend>());
  CudaConfig config;
  config.fp8_weights = true;
  Runner run(*model, open_emulated(config));
  Runner whole(*model, open_emulated());
  Runner::Sequence a;
  Runner::Sequence b;
  const auto tokens = random_tokens(12, 3);
  const double error = worst(run.step(a, tokens), reference.step(b, tokens));
  CHECK(error < 0.25);
  CHECK(error > 2e-2);  // they are e4m3
  CHECK(run.backend->memory_used_bytes() < whole.backend->memory_used_bytes());
}

TEST_CASE(
    "chunks that nobody reads do not overwrite each other's rows before the device has them") {
  const auto model = bf16_model(gpu_hyperparameters(), 14);
  const std::vector<int32_t> tokens = random_tokens(48, 4);
  Runner run(*model, open_emulated());
  Runner::Sequence sequence;
  run.prefill(sequence, tokens);
  const auto expected = run.prefill(sequence, {5});
  run.release(sequence);
  set_stream_order({simt::Eagerness::kAtWait, 1});
  run.reserve(sequence, 49);
  for (int32_t at = 0; at < 48; at += 8) {
    const std::span<const int32_t> ids =
        std::span<const int32_t>(tokens).subspan(static_cast<size_t>(at), 8);
    std::vector<int32_t> positions(8);
    std::iota(positions.begin(), positions.end(), at);
    const SequenceSlice slice{0, 8, at, sequence.pages};
    run.forward->start(*run.backend, {ids, positions, {&slice, 1}, {}});
  }
  sequence.cached = 48;
  CHECK(run.prefill(sequence, {5}) == expected);
  set_stream_order({});
}

TEST_CASE("a matrix whose width no product takes is refused when it is loaded, with its width") {
  const auto backend = open_emulated();
  const std::vector<float> values(size_t{16} * 48, 1.0F);
  const WeightView view{reinterpret_cast<const std::byte*>(values.data()), DType::kF32, 16, 48};
  CHECK(backend->add_matrix({&view, 1}).message().starts_with("matrix of 48 columns"));
  CHECK(backend->add_split_matrix({&view, 1}, {}).message().starts_with("matrix of 48 columns"));
}

TEST_CASE("e4m3 weights of a file keep their bytes, and their rows' scales") {
  const auto model = bf16_model(gpu_hyperparameters(Architecture::kQwen2), 14);
  updraft::testing::Fp8Rows rows;
  rows.convert(model->weights());
  Runner reference(*model, std::make_unique<updraft::testing::ReferenceBackend>());
  Runner run(*model, open_emulated());
  Runner::Sequence a;
  Runner::Sequence b;
  const auto tokens = random_tokens(9, 3);
  CHECK(worst(run.step(a, tokens), reference.step(b, tokens)) < 2e-2);
}

TEST_CASE("rows of an image keep their three positions in steps that are replayed") {
  Hyperparameters h = gpu_hyperparameters(Architecture::kQwen2);
  h.mrope_sections = {8, 12, 12, 0};
  const auto model = bf16_model(h, 15);
  Runner reference(*model, std::make_unique<updraft::testing::ReferenceBackend>());
  Runner run(*model, open_emulated());
  Runner::Sequence a;
  Runner::Sequence b;
  const auto step = [&](Runner& runner, Runner::Sequence& sequence, std::vector<int32_t> ids,
                        std::vector<int32_t> time, std::vector<int32_t> planes) {
    const auto count = static_cast<int32_t>(ids.size());
    runner.reserve(sequence, count);
    const SequenceSlice slice{0, count, sequence.cached, sequence.pages, count == 1 ? 1 : 0};
    std::vector<int32_t> rows(ids.size());
    std::iota(rows.begin(), rows.end(), 0);
    Batch batch{ids, time, {&slice, 1}, rows};
    batch.plane_positions = planes;
    sequence.cached += count;
    const auto logits = runner.forward->run(*runner.backend, batch);
    return std::vector<std::vector<float>>{{logits.begin(), logits.end()}};
  };
  const auto both = [&](const std::vector<int32_t>& ids, const std::vector<int32_t>& time,
                        const std::vector<int32_t>& planes) {
    CHECK(worst(step(run, a, ids, time, planes), step(reference, b, ids, time, planes)) < 2e-2);
  };
  both({1, 2, 3, 4, 5, 6}, {0, 1, 1, 1, 1, 3}, {0, 1, 1, 2, 2, 3, 0, 1, 2, 1, 2, 3});
  // Behind an image positions go on from the largest of it, which is not the number of rows. The
  // second is captured, the third replayed.
  both({7}, {4}, {});
  both({8}, {5}, {5, 5});
  both({9}, {6}, {9, 2});
  CHECK(cuda_counters(*run.backend).replayed_steps > 0);
}

TEST_CASE("a module whose kernels do nothing on the device is refused when it is opened") {
  struct Case {
    const char* arguments;  // of the kernel whose code is missing
    const char* family;
  };
  for (const Case& c : {Case{"SkinnyArguments", "a product"}, Case{"GatherRows", "a product"},
                        Case{"ResidualNorm", "a norm"}, Case{"RopeTable", "a rotation"},
                        Case{"Sample", "a choice"}, Case{"DecodeWork", "attention of one row"},
                        Case{"PrefillArguments", "attention of a prompt"}}) {
    CAPTURE(std::string(c.arguments));
    const simt::EmptyKernels missing(c.arguments);
    const auto opened = open_cuda_backend({});
    REQUIRE(!opened.ok());
    CHECK(opened.message().find("the kernels of this module do not work on this GPU: " +
                                std::string(c.family)) != std::string::npos);
  }
  CHECK(open_cuda_backend({}).ok());
}
