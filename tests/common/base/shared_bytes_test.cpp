// Bytes with their owner.
#include "common/base/shared_bytes.h"

#include <doctest/doctest.h>

using namespace updraft;

TEST_CASE("copies share the bytes, and the owner lives as long as the last of them") {
  auto owner = std::make_shared<std::string>("mapped");
  const std::weak_ptr<std::string> watch = owner;
  SharedBytes first(owner, as_bytes_view(*owner));
  owner.reset();
  SharedBytes second = first;
  CHECK(second.data() == first.data());
  first = {};
  CHECK(first.empty());
  REQUIRE_FALSE(watch.expired());
  CHECK(second.text() == "mapped");
  second = {};
  CHECK(watch.expired());
}

TEST_CASE("a string moves in, and equality is by content") {
  std::string text(1000, 'x');
  const char* const data = text.data();
  const SharedBytes bytes(std::move(text));
  CHECK(bytes.text().data() == data);
  CHECK(bytes == SharedBytes(std::string(1000, 'x')));
  CHECK_FALSE(bytes == SharedBytes("x"));
  CHECK(SharedBytes() == SharedBytes(""));
}
