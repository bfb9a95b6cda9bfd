// Rows of input embeddings from client programs to a real model: rows of its own table mean what
// their ids mean, and a client that rewrites them meanwhile spoils its own answer alone.
#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>
#include <vector>

#include "common/model/model.h"
#include "common/serve/local_model.h"
#include "edge/client/updraft_client.hpp"
#include "edge/local_server.h"
#include "kernels/quant/quant.h"
#include "tests/edge/client/c_program.h"
#include "tests/edge/client/echo_daemon.h"

using namespace updraft::client;

namespace {

struct ModelDaemon {
  ModelDaemon() {
    updraft::LocalModelConfig config;
    config.model_path = updraft::testing::repo_file("configs/models/updraft-demo-edge-q4_0.gguf");
    config.threads = 1;
    config.slots = 4;
    auto opened = updraft::LocalModel::open(config, {});
    REQUIRE_MESSAGE(opened.ok(), opened.message());
    model = std::move(*opened);
    updraft::LocalServerConfig local;
    local.socket_path = dir.file("edge.sock");
    auto started = updraft::LocalServer::start(local, *model);
    REQUIRE_MESSAGE(started.ok(), started.message());
    server = std::move(*started);
    auto file = updraft::open_model(config.model_path);
    REQUIRE(file.ok());
    const updraft::WeightView table = (*file)->weights().embedding;
    dim = static_cast<size_t>(table.cols);
    for (int32_t i = 0; i < 100; ++i) ids.push_back(10 + i * 7 % 200);
    rows.resize(ids.size() * dim);
    for (size_t i = 0; i < ids.size(); ++i) {
      updraft::dequantize_row(table.type, table.data + ids[i] * row_bytes(table.type, table.cols),
                              std::span(rows).subspan(i * dim, dim));
    }
  }
  Session connect() const {
    Options options;
    options.socket_path = dir.file("edge.sock");
    auto session = Session::connect(options);
    REQUIRE_MESSAGE(session.has_value(), session.error().text);
    return std::move(*session);
  }

  updraft::testing::TempDir dir;
  std::unique_ptr<updraft::LocalModel> model;
  std::unique_ptr<updraft::LocalServer> server;  // before the model goes
  size_t dim = 0;
  std::vector<int32_t> ids;
  std::vector<float> rows;  // [ids, dim], the table's
};

Completion& greedy(Completion& request) {
  return request.temperature(0).max_tokens(12).integer("ignore_eos", 1);
}

Result<std::vector<int32_t>> answer(Session& session, Completion& request) {
  Result<Stream> stream = session.submit(greedy(request));
  if (!stream) return stream.error();
  std::vector<int32_t> out;
  Result<Finish> end = stream->each(
      [&](const Piece& piece) { out.insert(out.end(), piece.ids.begin(), piece.ids.end()); });
  if (!end) return end.error();
  return out;
}

std::vector<int32_t> answered(Session& session, Completion& request) {
  Result<std::vector<int32_t>> ids = answer(session, request);
  REQUIRE_MESSAGE(ids.has_value(), ids.error().text);
  return *ids;
}

}  // namespace

TEST_CASE("a C program's rows of the model's own table are continued as their ids are") {
  const ModelDaemon daemon;
  const char* failed = run_c_embeddings(daemon.dir.file("edge.sock").c_str(), daemon.ids.data(), 20,
                                        daemon.rows.data(), daemon.dim);
  CHECK_MESSAGE(failed == nullptr, failed);
}

TEST_CASE("the C++ wrapper's rows are continued as their ids are: borrowed, in place, in parts") {
  const ModelDaemon daemon;
  Session session = daemon.connect();
  REQUIRE(session.embedding_dim() == static_cast<int32_t>(daemon.dim));
  const std::span<const int32_t> ids = daemon.ids;
  const std::span<const float> rows = daemon.rows;
  Completion plain(ids);
  const std::vector<int32_t> want = answered(session, plain);
  CHECK(want.size() == 12);
  Completion borrowed = Completion::of_parts();
  borrowed.embeddings(rows, daemon.dim);
  CHECK(answered(session, borrowed) == want);
  // Few rows ride along with the request, and so do all without shared memory.
  Options unmapped;
  unmapped.socket_path = daemon.dir.file("edge.sock");
  unmapped.shared_memory = false;
  auto messages = Session::connect(unmapped);
  REQUIRE(messages.has_value());
  Completion few_ids(ids.first(4));
  const std::vector<int32_t> want_few = answered(session, few_ids);
  for (Session* way : {&session, &*messages}) {
    Completion few = Completion::of_parts();
    few.embeddings(rows.first(4 * daemon.dim), daemon.dim);
    CHECK(answered(*way, few) == want_few);
  }
  // Ids in front, so that a page in the cache is found there, then rows in shared memory of their
  // own, then ids.
  auto buffer = session.allocate_once(50 * daemon.dim * sizeof(float));
  REQUIRE(buffer.has_value());
  std::memcpy(buffer->bytes().data(), rows.data() + 40 * daemon.dim,
              50 * daemon.dim * sizeof(float));
  Completion mixed = Completion::of_parts();
  mixed.ids(ids.first(40)).embeddings(*buffer, 50, daemon.dim).ids(ids.subspan(90));
  CHECK(answered(session, mixed) == want);
  CHECK(buffer->bytes().empty());

  Completion narrow = Completion::of_parts();
  narrow.embeddings(rows.first(10 * (daemon.dim - 1)), daemon.dim - 1);
  const auto refused = answer(session, narrow);
  REQUIRE(!refused);
  CHECK(refused.error().code == "invalid_request");
  CHECK(refused.error().text.find("rows of " + std::to_string(daemon.dim - 1) + " values") !=
        std::string::npos);
  CHECK(refused.error().text.find("takes embeddings of " + std::to_string(daemon.dim)) !=
        std::string::npos);
  std::vector<float> holed(rows.begin(), rows.end());
  holed[3 * daemon.dim + 5] = std::numeric_limits<float>::quiet_NaN();
  Completion nan = Completion::of_parts();
  nan.text("Go").embeddings(holed, daemon.dim);
  const auto no_number = answer(session, nan);
  REQUIRE(!no_number);
  CHECK(no_number.error().text ==
        "prompt_parts[1] holds a value that is no finite number: row 3, column 5");
}

TEST_CASE("rows that their client rewrites meanwhile end in its own answer or a typed error") {
  const ModelDaemon daemon;
  Session hostile = daemon.connect();
  Session honest = daemon.connect();
  Completion plain(daemon.ids);
  const std::vector<int32_t> want = answered(honest, plain);
  const size_t bytes = daemon.rows.size() * sizeof(float);
  // Written only while it is set: before the piece and after the answer the memory is the
  // library's.
  std::mutex mutex;
  float* target = nullptr;
  std::atomic<bool> stop = false;
  std::thread mutator([&] {
    const float values[] = {std::numeric_limits<float>::quiet_NaN(),
                            -std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::max(), 1.0F};
    for (uint32_t turn = 0; !stop; ++turn) {
      // Lies for a while, then the truth for a while.
      const float value = values[turn % 4];
      {
        const std::lock_guard lock(mutex);
        for (size_t i = turn / 8 % daemon.dim; target != nullptr && i < daemon.rows.size();
             i += daemon.dim) {
          static_cast<volatile float*>(target)[i] = turn % 8 < 4 ? value : daemon.rows[i];
        }
      }
      std::this_thread::sleep_for(std::chrono::microseconds(turn % 8 < 4 ? 50 : 2000));
    }
  });
  int answered_count = 0;
  int refused_count = 0;
  for (int i = 0; i < 2000 && (i < 20 || answered_count < 3 || refused_count < 3); ++i) {
    auto buffer = hostile.allocate(bytes);
    REQUIRE(buffer.has_value());
    std::memcpy(buffer->bytes().data(), daemon.rows.data(), bytes);
    {
      const std::lock_guard lock(mutex);
      target = reinterpret_cast<float*>(buffer->bytes().data());
    }
    Completion request = Completion::of_parts();
    request.embeddings(*buffer, daemon.ids.size(), daemon.dim);
    const auto got = answer(hostile, request);
    {
      const std::lock_guard lock(mutex);
      target = nullptr;
    }
    if (got) {
      ++answered_count;
    } else {
      ++refused_count;
      const bool typed = got.error().code == "invalid_request" || got.error().code == "internal";
      CHECK_MESSAGE(typed, got.error().text);
    }
    Completion again(daemon.ids);
    CHECK(answered(honest, again) == want);
  }
  stop = true;
  mutator.join();
  CHECK(answered_count > 0);
  CHECK(refused_count > 0);
}
