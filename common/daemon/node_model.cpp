// See the header.
#include "common/daemon/node_model.h"

#include <utility>

#include "common/log/log.h"

namespace updraft {

Result<std::unique_ptr<LocalModel>> open_node_model(LocalModelConfig config,
                                                    const std::string& node_id, Tier tier,
                                                    const Progress& progress) {
  config.node_id = node_id;
  config.tier = tier;
  config.note = [](const std::string& line) { log_warn("model note", {{"note", line}}); };
  return LocalModel::open(config, progress);
}

}  // namespace updraft
