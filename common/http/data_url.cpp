// Data URLs with base64 pictures.
#include "common/http/data_url.h"

#include <array>
#include <cstdint>

#include "common/base/bytes.h"
#include "common/http/strict.h"
#include "common/image/image_info.h"

namespace updraft {
namespace {

constexpr int8_t kNone = -1;

constexpr std::array<int8_t, 256> make_base64_table() {
  std::array<int8_t, 256> table{};
  table.fill(kNone);
  constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i) {
    table[static_cast<uint8_t>(kAlphabet[i])] = static_cast<int8_t>(i);
  }
  return table;
}
constexpr std::array<int8_t, 256> kBase64 = make_base64_table();

int sextet(char c) { return kBase64[static_cast<uint8_t>(c)]; }

Error bad_character(std::string_view text, size_t from) {
  size_t at = from;
  while (at < text.size() && sextet(text[at]) != kNone) ++at;
  return fail("not base64 at offset " + std::to_string(at) + ": '" + printable(text.substr(at, 4)) +
              "'");
}

}  // namespace

Result<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0) {
    return fail("base64 comes in groups of four characters, got " + std::to_string(text.size()) +
                " characters");
  }
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  std::string out(text.size() / 4 * 3, '\0');
  size_t at = 0;
  const size_t whole = text.size() - (padding > 0 ? 4 : 0);
  for (size_t i = 0; i < whole; i += 4) {
    const int a = sextet(text[i]), b = sextet(text[i + 1]), c = sextet(text[i + 2]),
              d = sextet(text[i + 3]);
    if ((a | b | c | d) < 0) return bad_character(text, i);
    const uint32_t bits = static_cast<uint32_t>(a << 18 | b << 12 | c << 6 | d);
    out[at++] = static_cast<char>(bits >> 16);
    out[at++] = static_cast<char>(bits >> 8);
    out[at++] = static_cast<char>(bits);
  }
  if (padding > 0) {
    const int a = sextet(text[whole]), b = sextet(text[whole + 1]);
    const int c = padding == 1 ? sextet(text[whole + 2]) : 0;
    if ((a | b | c) < 0) return bad_character(text, whole);
    const uint32_t bits = static_cast<uint32_t>(a << 18 | b << 12 | c << 6);
    if ((bits & (padding == 2 ? 0xFFFFU : 0xFFU)) != 0) {
      return fail("base64 with stray bits before its padding at offset " + std::to_string(whole));
    }
    out[at++] = static_cast<char>(bits >> 16);
    if (padding == 1) out[at++] = static_cast<char>(bits >> 8);
  }
  out.resize(at);
  return out;
}

Result<DataUrlImage> decode_image_url(std::string_view url, size_t bytes_max) {
  const std::string scheme = ascii_lower(url.substr(0, 8));
  if (scheme.starts_with("http:") || scheme.starts_with("https:")) {
    return fail("remote images are not fetched; send the picture as a data URL, got '" +
                printable(url) + "'");
  }
  if (!scheme.starts_with("data:")) {
    return fail(
        "must be a data URL (data:image/png;base64,... or data:image/jpeg;base64,...), got '" +
        printable(url, 40) + "'");
  }
  const size_t comma = url.substr(0, 256).find(',');
  if (comma == std::string_view::npos)
    return fail("a data URL without comma: '" + printable(url, 40) + "'");
  const std::string media = ascii_lower(url.substr(5, comma - 5));
  if (!media.ends_with(";base64")) {
    return fail("the data URL must be base64, got '" + printable(url.substr(0, comma), 60) + "'");
  }
  const std::string claimed = media.substr(0, media.find(';'));
  if (claimed != "image/png" && claimed != "image/jpeg" && claimed != "image/jpg") {
    return fail("images are image/png or image/jpeg, got '" + printable(claimed, 60) + "'");
  }
  const std::string_view encoded = url.substr(comma + 1);
  if (encoded.size() / 4 > bytes_max / 3 + 1) {
    return fail("the image has about " + std::to_string(encoded.size() / 4 * 3) +
                " bytes; at most " + std::to_string(bytes_max) + " are accepted");
  }
  auto bytes = decode_base64(encoded);
  if (!bytes) return bytes.error();
  // Clients often name the wrong one of the two; the content knows.
  const Result<ImageInfo> info = image_info("", as_bytes_view(*bytes));
  if (!info) return fail("the content is " + info.message());
  return DataUrlImage{info->format == ImageFormat::kPng ? "image/png" : "image/jpeg",
                      std::move(*bytes)};
}

}  // namespace updraft
