// What a model runs on, as flags.
#include "tools/model_flags.h"

#include <CLI/CLI.hpp>
#include <string>

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
                     "format of keys and values: f32, f16, bf16 or int8");
}

}  // namespace updraft
