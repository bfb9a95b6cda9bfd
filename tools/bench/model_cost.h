// What running a model costs at least: operations and bytes of a step, and the time that the
// machine's measured peaks allow for them. Pure.
#pragma once

#include <cstdint>

#include "common/model/model.h"

namespace updraft {

// Rates of the whole machine; 0: not measured.
struct PeakRates {
  double int8_ops_per_s = 0;
  double fma_ops_per_s = 0;
  double read_bytes_per_s = 0;
};

struct ModelCost {
  // Per row, a multiplication and an addition are two operations; attention is not counted.
  double layer_int8_ops = 0;   // matrices of the layers in quantised formats
  double layer_float_ops = 0;  // and in float formats
  double head_int8_ops = 0;    // per row with logits
  double head_float_ops = 0;
  // Read once per step, as stored in the file.
  double layer_bytes = 0;
  double head_bytes = 0;
  double kv_bytes_per_position = 0;  // of all layers, K and V
};

ModelCost model_cost(const Model& model, DType kv_type);

struct StepWork {
  double rows = 0;
  double logit_rows = 0;
  double kv_positions = 0;  // read, over all sequences; each once, as a prefill does it
  double steps = 1;         // passes over the weights
};

struct Bound {
  double seconds = 0;          // no run can be faster
  const char* limit = "read";  // what bounds it: "int8", "fma" or "read"
};
Bound least_time(const ModelCost& cost, const StepWork& work, const PeakRates& peak);

}  // namespace updraft
