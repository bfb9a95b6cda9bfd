// Sums between threads, and what is said where NCCL or a GPU is missing.
#include "kernels/parallel/comm.h"

#include <doctest/doctest.h>

#include <random>
#include <thread>

#include "kernels/cuda/comm_nccl.h"

using namespace updraft;

TEST_CASE("a sum is added up in the order of the ranks and is the same bits everywhere") {
  for (const int32_t size : {1, 2, 3, 4, 7}) {
    for (const int32_t count : {1, 15, 16, 17, 200}) {
      CAPTURE(size);
      CAPTURE(count);
      std::mt19937 random(9);
      std::vector<std::vector<float>> values(static_cast<size_t>(size));
      std::vector<float> expected(static_cast<size_t>(count), 0.0F);
      for (auto& own : values) {
        for (int32_t i = 0; i < count; ++i) {
          // Of many sizes, so that another order gives other bits.
          own.push_back(std::ldexp(static_cast<float>(random() % 1000), random() % 30));
          expected[static_cast<size_t>(i)] += own.back();
        }
      }
      const auto comms = make_host_comms(size);
      std::vector<std::thread> ranks;
      for (int32_t rank = 0; rank < size; ++rank) {
        ranks.emplace_back([&, rank] {
          auto& own = values[static_cast<size_t>(rank)];
          Comm& comm = *comms[static_cast<size_t>(rank)];
          // Again and again: what one sum leaves behind must not reach into the next.
          for (int round = 0; round < 20; ++round) {
            std::vector<float> copy = own;
            if (!comm.all_reduce(copy.data(), count, Comm::Values::kF32, nullptr)) std::abort();
            if (round == 19) own = copy;
          }
        });
      }
      for (std::thread& thread : ranks) thread.join();
      for (const auto& own : values) CHECK(own == expected);
    }
  }
  const auto alone = make_host_comms(1);
  float value = 1.0F;
  CHECK_FALSE(alone[0]->all_reduce(&value, 1, Comm::Values::kBF16, nullptr).ok());
}

TEST_CASE("NCCL's version is told in words, with the one to beware of") {
  CHECK(cuda::describe_nccl(22809).find("NCCL 2.28.9 (") == 0);
  CHECK(cuda::describe_nccl(23003).find("2.30.4") != std::string::npos);
  CHECK(cuda::describe_nccl(23004) == "NCCL 2.30.4");
}

TEST_CASE("GPUs that are not there are an error that names them") {
  const auto twice = cuda::open_nccl_comms(std::vector<int32_t>{0, 1, 0});
  REQUIRE_FALSE(twice.ok());
  CHECK(twice.message() == "GPU 0 is given twice");
  const auto missing = cuda::open_nccl_comms(std::vector<int32_t>{1000, 1001});
  REQUIRE_FALSE(missing.ok());
  // Either the library or the devices.
  CHECK(missing.message().find(missing.message().find("ncclCommInitAll") == 0
                                   ? "1000, 1001"
                                   : "NCCL") != std::string::npos);
}
