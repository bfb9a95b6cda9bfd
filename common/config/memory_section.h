// [memory] of every daemon's configuration.
#pragma once

#include "common/base/memory_level.h"
#include "common/config/toml_file.h"

namespace updraft {

// shed_percent 50..100, refuse_percent shed_percent..100; 100: never.
void read_memory_section(TomlFile& file, MemoryThresholds& memory);

}  // namespace updraft
