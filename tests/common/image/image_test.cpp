// Images as an outside encoder wrote them (golden/, make_goldens.py), and as nobody should.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/image/decode.h"
#include "common/image/image_info.h"
#include "tests/support/shared_data.h"

using namespace updraft;

namespace {

std::string golden(const std::string& name) {
  std::ifstream file(testing::repo_file("tests/common/image/golden/" + name), std::ios::binary);
  REQUIRE_MESSAGE(file, name);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string type_of(const std::string& name) {
  return name.ends_with(".png") ? "image/png" : "image/jpeg";
}

const std::vector<std::string> kFiles = {"rgb.png",         "grey.png",        "bits1.png",
                                         "palette.png",     "rgba.png",        "grey_alpha.png",
                                         "adam7.png",       "rgb16.png",       "baseline.jpg",
                                         "progressive.jpg", "full_chroma.jpg", "grey.jpg"};

std::string why_not(std::string_view mime, std::string_view bytes) {
  const auto info = image_info(mime, as_bytes_view(bytes));
  return info ? "accepted" : info.message();
}

bool names(const std::string& message, std::string_view what) {
  const bool found = message.find(what) != std::string::npos;
  CHECK_MESSAGE(found, message);
  return found;
}

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

// PNG's checksum over IHDR's name and content.
uint32_t checksum(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int i = 0; i < 8; ++i) crc = crc >> 1 ^ (crc % 2 * 0xEDB88320);
  }
  return ~crc;
}

// rgb.png that says to have another size.
std::string png_of_size(uint32_t width, uint32_t height) {
  std::string file = golden("rgb.png");
  file.replace(16, 8, big_endian(width) + big_endian(height));
  file.replace(29, 4, big_endian(checksum(std::string_view(file).substr(12, 17))));
  return file;
}

int64_t peak_memory_kb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::atoll(line.c_str() + 6);
  }
  return 0;
}

}  // namespace

TEST_CASE("every kind of file gives the pixels that its outside reader sees") {
  for (const std::string& name : kFiles) {
    const std::string file = golden(name);
    const std::string expected = golden(name + ".rgb");
    const auto info = image_info(type_of(name), as_bytes_view(file));
    REQUIRE_MESSAGE(info.ok(), std::string(name + ": " + info.message()));
    CHECK(*info ==
          ImageInfo{name.ends_with(".png") ? ImageFormat::kPng : ImageFormat::kJpeg, 19, 13});
    const auto image = decode_rgb(type_of(name), as_bytes_view(file));
    REQUIRE_MESSAGE(image.ok(), std::string(name + ": " + image.message()));
    REQUIRE(image->bytes() == expected.size());
    int worst = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      worst = std::max(worst, std::abs(image->pixels[i] - static_cast<uint8_t>(expected[i])));
    }
    // JPEG decoders may round an inverse transform differently.
    CHECK_MESSAGE(worst <= (name.ends_with(".png") ? 0 : 3), name << " is off by " << worst);
  }
}

TEST_CASE("raw pixels are taken as they are when their count is right") {
  const std::string pixels = golden("rgb.png.rgb");
  const std::string type = raw_rgb_type(19, 13);
  CHECK(type == "image/x-raw-rgb;width=19;height=13");
  const auto image = decode_rgb(type, as_bytes_view(pixels));
  REQUIRE_MESSAGE(image.ok(), image.message());
  CHECK(std::memcmp(image->row(0), pixels.data(), pixels.size()) == 0);
  CHECK(image->row(12) == image->pixels.get() + 12 * 19 * 3);
  CHECK(names(why_not(type, pixels.substr(1)), "has 740 bytes instead of 741"));
  CHECK(names(why_not(raw_rgb_type(13, 18), pixels), "has 741 bytes instead of 702"));
  CHECK(names(why_not(raw_rgb_type(0, 13), ""), "0"));
  CHECK(names(why_not(raw_rgb_type(65536, 1), pixels), "65536x1 pixels; at most"));
  for (const char* bad :
       {"image/x-raw-rgb", "image/x-raw-rgb;width=19", "image/x-raw-rgb;height=13;width=19",
        "image/x-raw-rgb;width=19;height=13;", "image/x-raw-rgb;width=+19;height=13",
        "image/x-raw-rgb;width=019;height=13", "image/x-raw-rgb;width=99999999999;height=13",
        "image/x-raw-rgba;width=19;height=13", "image/x-raw-rgb;width=;height="}) {
    CHECK(names(why_not(bad, pixels), "raw pixels of type"));
  }
}

TEST_CASE("what is no image, or not the one it is said to be, is told so") {
  CHECK(names(why_not("image/png", "GIF89a..."), "neither PNG nor JPEG: it starts with 'GIF89a"));
  CHECK(names(why_not("image/png", ""), "neither PNG nor JPEG"));
  CHECK(names(why_not("image/gif", golden("rgb.png")), "type \"image/gif\""));
  CHECK(names(why_not("image/jpeg", golden("rgb.png")), "a PNG that is said to be image/jpeg"));
  CHECK(names(why_not("image/png", golden("grey.jpg")), "a JPEG that is said to be image/png"));
  CHECK(why_not("", golden("rgb.png")) == "accepted");
  CHECK(names(why_not("", golden("cmyk.jpg")), "4 colour components"));
  std::string flipped = golden("rgb.png");
  flipped[20] ^= 1;
  CHECK(names(why_not("", flipped), "does not match its checksum"));
  std::string lossless = golden("baseline.jpg");
  const size_t frame = lossless.find("\xFF\xC0");
  REQUIRE(frame != std::string::npos);
  lossless[frame + 1] = '\xC3';
  CHECK(names(why_not("", lossless), "lossless"));
  std::string twelve_bits = golden("baseline.jpg");
  twelve_bits[frame + 4] = 12;
  CHECK(names(why_not("", twelve_bits), "12 bits per sample"));
}

TEST_CASE("a header that promises too much is refused before anything is allocated") {
  CHECK(names(why_not("", png_of_size(60000, 60000)), "60000x60000 pixels; at most 67108864"));
  CHECK(names(why_not("", png_of_size(0x80000000, 1)), "2147483648x1 pixels"));
  CHECK(names(why_not("", png_of_size(0, 5)), "0x5 pixels"));
  CHECK(why_not("", png_of_size(8192, 8192)) == "accepted");
  std::string jpeg = golden("baseline.jpg");
  jpeg.replace(jpeg.find("\xFF\xC0") + 5, 4, "\xFF\xFF\xFF\xFF");
  CHECK(names(why_not("", jpeg), "65535x65535 pixels; at most"));
}

TEST_CASE("a small file that promises 64 million pixels costs no memory for them") {
  const int64_t before_kb = peak_memory_kb();
  const auto image = decode_rgb("", as_bytes_view(png_of_size(8192, 8192)));
  REQUIRE_FALSE(image.ok());
  CHECK(names(image.message(), "PNG of 8192x8192 pixels, near byte"));
  CHECK(peak_memory_kb() - before_kb < 96 * 1024);  // the pixels would be 192 MiB
}

TEST_CASE("a file that ends early is an error wherever it ends") {
  for (const std::string& name : kFiles) {
    const std::string file = golden(name);
    for (size_t bytes = 0; bytes < file.size(); ++bytes) {
      const auto image = decode_rgb("", as_bytes_view(std::string_view(file).substr(0, bytes)));
      CHECK_MESSAGE(!image.ok(), name << " cut to " << bytes << " of " << file.size());
    }
  }
}

TEST_CASE("damage in the data is told with its place, and changes nothing for the next image") {
  std::string file = golden("rgb.png");
  const size_t data = file.find("IDAT");
  file[data + 8] ^= 0x55;
  const auto image = decode_rgb("", as_bytes_view(file));
  REQUIRE_FALSE(image.ok());
  CHECK(names(image.message(), "PNG of 19x13 pixels, near byte"));
  CHECK(decode_rgb("", as_bytes_view(golden("rgb.png"))).ok());
}

TEST_CASE("a JPEG with scans without end is given up") {
  const std::string file = golden("progressive.jpg");
  const size_t last_scan = file.rfind("\xFF\xDA");
  std::string scan = file.substr(last_scan);
  scan.resize(scan.size() - 2);  // the end-of-image marker
  std::string many = file.substr(0, last_scan);
  for (int i = 0; i < 20; ++i) many += scan;
  CHECK(decode_rgb("", as_bytes_view(many + "\xFF\xD9")).ok());
  for (int i = 0; i < 200; ++i) many += scan;
  const auto image = decode_rgb("", as_bytes_view(many + "\xFF\xD9"));
  REQUIRE_FALSE(image.ok());
  CHECK(names(image.message(), "too many scans"));
}
