// The model of a node's daemon, edge or cloud: answers carry the node's id and tier.
#pragma once

#include <memory>
#include <string>

#include "common/base/progress.h"
#include "common/base/result.h"
#include "common/serve/local_model.h"

namespace updraft {

// LocalModel::open() for this node; whatever `config` says of id and tier is replaced. Errors are
// LocalModel's.
Result<std::unique_ptr<LocalModel>> open_node_model(LocalModelConfig config,
                                                    const std::string& node_id, Tier tier,
                                                    const Progress& progress);

}  // namespace updraft
