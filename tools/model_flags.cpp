// What a model runs on, as flags.
#include "tools/model_flags.h"

#include <CLI/CLI.hpp>
#include <string>

#include "common/config/toml_file.h"

namespace updraft {

void add_processor_flags(CLI::App& command, LocalModelConfig& model) {
  command.add_option("-t,--threads", model.threads, "threads (0: one per core)")
      ->check(CLI::Range(0, 1024));
  command.add_option("--cores", model.cores, "pin threads to these cores, comma separated")
      ->delimiter(',');
  std::string isas;
  for (const std::string& name : isa_choices()) isas += (isas.empty() ? "" : ", ") + name;
  command.add_option("--isa", model.isa, "instruction set: " + isas + " (default: the best here)");
  command.add_option("--kv-type", model.kv_type,
                     "format of keys and values: f32, f16, bf16, int8 or (GPU) fp8");
  command
      .add_option_function<std::string>(
          "--max-memory",
          [&model](const std::string& text) {
            const Result<uint64_t> bytes = parse_bytes(text);
            if (!bytes) throw CLI::ValidationError("--max-memory", bytes.message());
            model.max_memory_bytes = *bytes;
          },
          "weights, KV and activations together at most, such as \"8 GiB\" (default: what is free)")
      ->type_name("BYTES");
  command.add_option("--device", model.backend, "auto (a GPU where there is one), cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command
      .add_option("--weights", model.weights,
                  "\"as is\", or fp8: float weights in half the GPU's memory")
      ->check(CLI::IsMember({"as is", "fp8"}));
  command
      .add_option("--activations", model.activations,
                  "GPU: bf16, int8 or fp8 (float weights then in the same format)")
      ->check(CLI::IsMember({"bf16", "int8", "fp8"}));
  command.add_flag("--offload", model.offload,
                   "weights that the GPU has no room for stay in host memory");
  command.add_flag("--tune,!--no-tune", model.tune,
                   "GPU: time the ways of each product at start-up (default)");
  command.add_option("--tune-cache", model.tune_cache,
                     "GPU: folder for what was measured (default: the user's cache folder)");
  command
      .add_option("--gpu", model.gpus,
                  "index of the GPU; several, comma-separated, share the model")
      ->delimiter(',')
      ->expected(1, 16)
      ->check(CLI::Range(0, 63));
}

}  // namespace updraft
