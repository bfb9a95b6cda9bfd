// Flags that every command has which opens a model in its own process.
#pragma once

#include "common/serve/local_model.h"

namespace CLI {
class App;
}

namespace updraft {

// Threads and cores, formats, memory, and which device. The config outlives the command.
void add_processor_flags(CLI::App& command, LocalModelConfig& model);

}  // namespace updraft
