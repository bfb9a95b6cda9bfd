// See the header.
#include "common/config/memory_section.h"

#include <string>

namespace updraft {

void read_memory_section(TomlFile& file, MemoryThresholds& memory) {
  file.get("memory.shed_percent", memory.shed_percent, 50, 100);
  file.get("memory.refuse_percent", memory.refuse_percent, 50, 100);
  if (memory.refuse_percent < memory.shed_percent) {
    file.refuse("memory.refuse_percent",
                "= " + std::to_string(memory.refuse_percent) +
                    " is less than shed_percent = " + std::to_string(memory.shed_percent));
  }
}

}  // namespace updraft
