// updraft quality: what the fast arithmetic and the weight format of a model file cost in accuracy.
#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>

#include "common/http/json_text.h"
#include "common/model/mapped_file.h"
#include "common/model/tokenizer_file.h"
#include "common/text/tokenizer.h"
#include "tools/bench/logit_quality.h"
#include "tools/command.h"
#include "tools/daemon.h"

namespace updraft {
namespace {

constexpr uint64_t kTextBytesMax = 64U << 20;

struct QualityFlags {
  LocalModelConfig model;
  std::string reference;  // model file; empty: the same
  std::string text, ids, logits, dump;
  int32_t window = 256;
  bool json = false;
};

Result<std::vector<int32_t>> read_ids(const QualityFlags& flags) {
  const std::string& path = flags.ids.empty() ? flags.text : flags.ids;
  if (path.empty()) return fail("over which tokens? give --text FILE or --ids FILE");
  const auto content = read_text_file(path, kTextBytesMax);
  if (!content) return content.error();
  if (!flags.text.empty()) {
    const auto data = open_tokenizer_data(flags.model.model_path);
    if (!data) return data.error();
    const auto tokenizer = Tokenizer::create(*data);
    if (!tokenizer) return tokenizer.error(flags.model.model_path);
    return (*tokenizer)->encode_all(*content, SpecialText::kParse, true);
  }
  std::vector<int32_t> ids;
  const char* at = content->data();
  const char* end = at + content->size();
  while (true) {
    while (at != end && std::strchr(" \t\r\n,[]", *at) != nullptr) ++at;
    if (at == end) return ids;
    int32_t id = 0;
    const auto read = std::from_chars(at, end, id);
    if (read.ec != std::errc())
      return fail(path + ": \"" + printable(std::string_view(at, std::min<size_t>(8, end - at))) +
                  "\" is no token id");
    ids.push_back(id);
    at = read.ptr;
  }
}

// The rows that the comparison is about: of the fast arithmetic, or from a file of another program.
Result<std::vector<float>> other_logits(const QualityFlags& flags, std::span<const int32_t> ids) {
  std::vector<float> all;
  if (!flags.logits.empty()) {
    const auto file = MappedFile::open(flags.logits);
    if (!file) return file.error();
    const ByteView bytes = (*file)->bytes();
    if (bytes.size() % (ids.size() * sizeof(float)) != 0)
      return fail(flags.logits + ": " + std::to_string(bytes.size()) +
                  " bytes are no f32 rows of " + std::to_string(ids.size()) + " tokens");
    all.resize(bytes.size() / sizeof(float));
    std::memcpy(all.data(), bytes.data(), bytes.size());
    return all;
  }
  const auto done = all_logits(
      flags.model, ids, flags.window,
      [&](int64_t, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); },
      terminal_progress());
  if (!done) return done.error();
  return all;
}

int quality(const QualityFlags& flags) {
  const auto ids = read_ids(flags);
  if (!ids) return complain("quality: " + ids.message());
  if (ids->empty()) return complain("quality: no tokens");
  const auto other = other_logits(flags, *ids);
  if (!other) return complain("quality: " + other.message());
  const size_t vocab = other->size() / ids->size();
  if (!flags.dump.empty()) {
    std::ofstream out(flags.dump, std::ios::binary);
    out.write(reinterpret_cast<const char*>(other->data()),
              static_cast<std::streamsize>(other->size() * sizeof(float)));
    out.close();
    if (!out) return complain("quality: " + flags.dump + ": cannot be written");
  }
  LocalModelConfig exact = flags.model;
  if (!flags.reference.empty()) exact.model_path = flags.reference;
  exact.exact = true;
  exact.kv_type = "f32";
  LogitComparison comparison;
  bool fits = true;
  const auto done = all_logits(
      exact, *ids, flags.window,
      [&](int64_t row, std::span<const float> logits) {
        fits = fits && logits.size() == vocab;
        if (fits) comparison.add(logits, std::span(*other).subspan(row * vocab, vocab));
      },
      terminal_progress());
  if (!done) return complain("quality: " + done.message());
  if (!fits)
    return complain("quality: the compared logits have " + std::to_string(vocab) +
                    " columns, the reference model another vocabulary");
  const LogitQuality q = comparison.result();
  if (flags.json) {
    std::printf(
        "{\"model\": %s, \"reference\": %s, \"rows\": %lld, \"kl_mean\": %.6g, \"kl_p99\": "
        "%.6g, \"kl_max\": %.6g, \"top1\": %.6g}\n",
        json_string(flags.model.model_path).c_str(), json_string(exact.model_path).c_str(),
        static_cast<long long>(q.rows), q.kl_mean, q.kl_p99, q.kl_max, q.top1_agreement);
  } else {
    std::printf(
        "%lld tokens: KL divergence mean %.3g, 99th percentile %.3g, worst %.3g nats; "
        "likeliest token the same in %.2f %%\n",
        static_cast<long long>(q.rows), q.kl_mean, q.kl_p99, q.kl_max, 100.0 * q.top1_agreement);
  }
  return 0;
}

}  // namespace

void add_quality(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<QualityFlags>();
  CLI::App* command = app.add_subcommand(
      "quality", "compare the next-token probabilities of a model file with exact arithmetic");
  command->footer(
      "The reference is f32 arithmetic with f32 keys and values on the same file's weights, which "
      "shows what the fast\n"
      "kernels cost; with --reference a more precise file of the model, which shows what the "
      "format costs as well.");
  LocalModelConfig& model = flags->model;
  command->add_option("-m,--model", model.model_path, "the model file")->required();
  command->add_option("--reference", flags->reference, "take the exact logits from this file");
  command->add_option("--text", flags->text, "text to read, with the model's special tokens");
  command->add_option("--ids", flags->ids, "token ids to read, separated by spaces or commas");
  command->add_option("--window", flags->window, "tokens that see each other")
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--logits", flags->logits,
                      "compare these instead: raw f32 [tokens, vocabulary] of another program");
  command->add_option("--dump", flags->dump, "write the compared logits to this file, raw f32");
  command->add_option("-t,--threads", model.threads, "threads (0: one per core)")
      ->check(CLI::Range(0, 1024));
  command->add_option("--isa", model.isa, "generic, avx2 or avx512 (default: the best here)");
  command->add_option("--kv-type", model.kv_type, "format of keys and values");
  command->add_flag("--json", flags->json, "one JSON object");
  command->callback([flags, &exit_status] { exit_status = quality(*flags); });
}

}  // namespace updraft
