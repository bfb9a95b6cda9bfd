// Further segments: what a client makes, what a daemon accepts of one, and what nobody can do to it.
#include "common/ipc/payload_segment.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

using namespace updraft;
using namespace updraft::ipc;
using Kind = PayloadSegment::Kind;

namespace {

std::unique_ptr<PayloadSegment> made(uint64_t bytes, Kind kind) {
  auto segment = PayloadSegment::create(bytes, kind);
  REQUIRE_MESSAGE(segment.ok(), segment.message());
  return std::move(segment).value();
}

Result<std::unique_ptr<PayloadSegment>> adopted(int fd, Kind kind, uint64_t bytes_max = 1 << 30) {
  return PayloadSegment::adopt(UniqueFd(dup(fd)), bytes_max, kind);
}

std::string refused(int fd, Kind kind, uint64_t bytes_max = 1 << 30) {
  const auto segment = adopted(fd, kind, bytes_max);
  return segment ? "accepted" : segment.message();
}

bool contains(const std::string& text, std::string_view what) {
  return text.find(what) != std::string::npos;
}

int64_t huge_pages_free() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("HugePages_Free:")) return std::atoll(line.c_str() + 15);
  }
  return 0;
}

constexpr int kAreaSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

}  // namespace

TEST_CASE("an area is written by its maker alone and seen by who adopts it") {
  const auto client = made(100'000, Kind::kArea);
  CHECK(client->data().size() == 102'400);  // whole pages
  std::memcpy(client->data().data() + 50'000, "pixels", 6);
  auto daemon = adopted(client->fd(), Kind::kArea);
  REQUIRE_MESSAGE(daemon.ok(), daemon.message());
  CHECK(as_text((*daemon)->bytes().subspan(50'000, 6)) == "pixels");
  std::memcpy(client->data().data() + 50'000, "PIXELS", 6);
  CHECK(as_text((*daemon)->bytes().subspan(50'000, 6)) == "PIXELS");
  CHECK((*daemon)->fd() == -1);
}

TEST_CASE("nobody can resize an area, punch a hole into it or become a second writer") {
  const auto client = made(1 << 20, Kind::kArea);
  CHECK(ftruncate(client->fd(), 0) != 0);
  CHECK(ftruncate(client->fd(), 2 << 20) != 0);
  CHECK(fallocate(client->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0);
  CHECK(madvise(client->data().data(), 4096, MADV_REMOVE) != 0);
  CHECK(pwrite(client->fd(), "x", 1, 0) != 1);
  CHECK(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, client->fd(), 0) == MAP_FAILED);
}

TEST_CASE("a frozen one-off never changes again, and stays readable for its maker") {
  const auto client = made(3 << 20, Kind::kOneOff);
  std::memset(client->data().data(), 'a', client->data().size());
  CHECK(contains(refused(client->fd(), Kind::kOneOff), "not sealed"));
  REQUIRE(client->freeze().ok());
  REQUIRE(client->freeze().ok());
  auto daemon = adopted(client->fd(), Kind::kOneOff);
  REQUIRE_MESSAGE(daemon.ok(), daemon.message());
  CHECK(client->data().back() == std::byte{'a'});
  client->data()[7] = std::byte{'b'};  // into a private copy
  CHECK((*daemon)->bytes()[7] == std::byte{'a'});
  CHECK(pwrite(client->fd(), "x", 1, 0) != 1);
  CHECK(fallocate(client->fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) != 0);
}

TEST_CASE("what lacks a seal, has holes or is too large is refused by name") {
  const auto area = made(1 << 20, Kind::kArea);
  CHECK(refused(area->fd(), Kind::kOneOff) ==
        "the segment of one request is not sealed against writing");
  CHECK(refused(area->fd(), Kind::kArea, (1 << 20) - 1) ==
        "the segment has 1048576 bytes, allowed are 1 to 1048575");
  int pipe_ends[2];
  REQUIRE(pipe(pipe_ends) == 0);
  CHECK(refused(pipe_ends[0], Kind::kArea) == "the segment's descriptor is no memfd");
  close(pipe_ends[0]);
  close(pipe_ends[1]);
  for (const int missing : {F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_FUTURE_WRITE}) {
    const UniqueFd fd(memfd_create("test", MFD_ALLOW_SEALING));
    REQUIRE(ftruncate(fd.get(), 1 << 20) == 0);
    REQUIRE(fallocate(fd.get(), 0, 0, 1 << 20) == 0);
    REQUIRE(fcntl(fd.get(), F_ADD_SEALS, kAreaSeals & ~missing) == 0);
    CHECK(contains(refused(fd.get(), Kind::kArea), "not sealed against"));
  }
  const UniqueFd holes(memfd_create("test", MFD_ALLOW_SEALING));
  REQUIRE(ftruncate(holes.get(), 1 << 20) == 0);
  REQUIRE(fallocate(holes.get(), 0, 0, (1 << 20) - 4096) == 0);
  REQUIRE(fcntl(holes.get(), F_ADD_SEALS, kAreaSeals) == 0);
  CHECK(refused(holes.get(), Kind::kArea) ==
        "the segment has holes: only 1044480 of its 1048576 bytes are there");
}

TEST_CASE("a large area comes from the pool of huge pages when that has room") {
  const bool room = huge_pages_free() >= 2;
  const auto client = made(3 << 20, Kind::kArea);
  auto daemon = adopted(client->fd(), Kind::kArea);
  REQUIRE_MESSAGE(daemon.ok(), daemon.message());
  CHECK((client->pages() == PageKind::kHuge) == room);
  CHECK((*daemon)->pages() == client->pages());
  CHECK(client->data().size() == (room ? 4 << 20 : 3 << 20));
  std::memset(client->data().data(), 'h', client->data().size());
  CHECK((*daemon)->bytes().back() == std::byte{'h'});
}

TEST_CASE("a session's own segment may not lie in the pool of huge pages") {
  if (huge_pages_free() < 1) {
    MESSAGE("skipped: the pool of huge pages is empty");
    return;
  }
  const UniqueFd fd(memfd_create("test", MFD_ALLOW_SEALING | MFD_HUGETLB));
  REQUIRE(ftruncate(fd.get(), 2 << 20) == 0);
  REQUIRE(fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
  CHECK(Segment::adopt(UniqueFd(dup(fd.get())), 1 << 30).message() ==
        "the segment lies in the pool of huge pages");
}
