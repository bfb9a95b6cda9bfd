#include "kernels/cuda/page_ops.h"

#include <cstring>

#include "tests/kernels/cuda/support.h"

using namespace updraft;
using namespace updraft::cuda;
using namespace updraft::cuda::testing;

namespace {

constexpr size_t kPages = 7;
constexpr size_t kPageBytes = 16 * 1031;  // no multiple of what a block moves at a time

struct Pool {
  Buffer<std::byte> memory{"pages", kPages* kPageBytes};
  std::vector<std::byte> before;
  explicit Pool(unsigned seed) {
    for (size_t i = 0; i < memory.size(); ++i) {
      memory[i] = static_cast<std::byte>(i * 31 + i / kPageBytes + seed);
    }
    before.assign(memory.span().begin(), memory.span().end());
  }
  bool page_is(size_t page, const Pool& of, size_t source) const {
    return std::memcmp(memory.data() + page * kPageBytes, of.before.data() + source * kPageBytes,
                       kPageBytes) == 0;
  }
};

}  // namespace

TEST_CASE("pages are copied whole and nothing else changes") {
  const Pool pool(0);
  const std::vector<int32_t> from_list = {6, 0, 6};
  const std::vector<int32_t> to_list = {1, 3, 5};
  const Buffer<int32_t> from("from", std::span(from_list));
  const Buffer<int32_t> to("to", std::span(to_list));
  require_ok(run_move_pages(
      {pool.memory.data(), pool.memory.data(), kPageBytes, from.data(), to.data(), 3}, nullptr));
  const size_t source[kPages] = {0, 6, 2, 0, 4, 6, 6};
  for (size_t p = 0; p < kPages; ++p) CHECK(pool.page_is(p, pool, source[p]));
}

TEST_CASE("pages that are gathered, the pool overwritten, come back scattered to other pages") {
  const Pool pool(0);
  const std::vector<int32_t> out_list = {5, 2, 0, 6};
  const std::vector<int32_t> in_list = {1, 6, 3, 2};
  const Buffer<int32_t> out("out", std::span(out_list));
  const Buffer<int32_t> in("in", std::span(in_list));
  const Buffer<std::byte> staging("staging", 4 * kPageBytes);
  require_ok(run_move_pages(
      {pool.memory.data(), staging.data(), kPageBytes, out.data(), nullptr, 4}, nullptr));
  const Pool other(77);
  require_ok(run_move_pages(
      {staging.data(), other.memory.data(), kPageBytes, nullptr, in.data(), 4}, nullptr));
  for (size_t i = 0; i < 4; ++i) {
    CHECK(other.page_is(static_cast<size_t>(in_list[i]), pool, static_cast<size_t>(out_list[i])));
  }
  for (const size_t p : {0, 4, 5}) CHECK(other.page_is(p, other, p));
  for (size_t p = 0; p < kPages; ++p) CHECK(pool.page_is(p, pool, p));
}

TEST_CASE("moves of pages that do not fit are refused with their values, of none are nothing") {
  const Pool pool(0);
  const Buffer<int32_t> list("list", 1);
  MovePages op{pool.memory.data(), pool.memory.data(), 24, list.data(), list.data(), 1};
  CHECK(run_move_pages(op, nullptr).message().find("24 bytes") != std::string::npos);
  op.page_bytes = 32;
  op.count = -1;
  CHECK(run_move_pages(op, nullptr).message().find("-1 pages") != std::string::npos);
  op.count = 1;
  op.from_index = op.to_index = nullptr;
  CHECK(run_move_pages(op, nullptr).message().find("no list from") != std::string::npos);
  op.count = 0;
  op.from_index = list.data();
  require_ok(run_move_pages(op, nullptr));
}
