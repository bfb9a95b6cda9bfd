// updraft quantize: a model file in another weight format.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "common/base/clock.h"
#include "tools/command.h"
#include "tools/convert/quantize_file.h"
#include "tools/daemon.h"

namespace updraft {
namespace {

struct QuantizeFlags {
  QuantizeConfig config;
  std::string type;
};

int quantize(const QuantizeFlags& flags) {
  QuantizeConfig config = flags.config;
  const auto type = file_type_from_name(flags.type);
  if (!type) return complain("--type " + flags.type + ": known are " + file_type_names());
  config.type = *type;
  const int64_t start_ns = monotonic_ns();
  const auto report = quantize_file(config, terminal_progress());
  if (!report) return complain(report.message());
  const double seconds = static_cast<double>(monotonic_ns() - start_ns) / kNsPerSecond;
  std::string formats;
  for (size_t i = 0; i < report->tensors.size(); ++i) {
    if (report->tensors[i] == 0) continue;
    formats += (formats.empty() ? "" : ", ") + std::to_string(report->tensors[i]) + " " +
               dtype_info(static_cast<DType>(i)).name;
  }
  std::fprintf(stderr, "%s: %.1f MB from %.1f MB in %.1f s (%.0f MB/s read); tensors: %s\n",
               config.output.c_str(), static_cast<double>(report->output_bytes) / 1e6,
               static_cast<double>(report->input_bytes) / 1e6, seconds,
               static_cast<double>(report->input_bytes) / 1e6 / seconds, formats.c_str());
  return 0;
}

}  // namespace

void add_quantize(CLI::App& app, int& exit_status) {
  auto flags = std::make_shared<QuantizeFlags>();
  CLI::App* command = app.add_subcommand("quantize", "write a model file in another weight format");
  command
      ->add_option("input", flags->config.input,
                   ".gguf file, or a Hugging Face folder (config.json, safetensors, tokenizer)")
      ->required();
  command->add_option("output", flags->config.output, "the .gguf file to write")->required();
  command->add_option("--type", flags->type, "one of " + file_type_names())->required();
  command->add_option("-t,--threads", flags->config.thread_count, "threads (0: one per core)")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--allow-requantize", flags->config.allow_requantize,
                    "also take weights that are quantised already (loses quality)");
  command->callback([flags, &exit_status] { exit_status = quantize(*flags); });
}

}  // namespace updraft
