// Counting a model's work and holding it against the peaks.
#include "tools/bench/model_cost.h"

#include <algorithm>

namespace updraft {
namespace {

double ops_of(const WeightView& view) {
  return 2.0 * static_cast<double>(view.rows) * static_cast<double>(view.cols);
}
double bytes_of(const WeightView& view) {
  return static_cast<double>(view.rows) * static_cast<double>(row_bytes(view.type, view.cols));
}
bool is_quantised(const WeightView& view) { return dtype_info(view.type).block_elems > 1; }

double element_bytes(DType type) {
  const DTypeInfo& info = dtype_info(type);
  return static_cast<double>(info.block_bytes) / info.block_elems;
}

double seconds(double amount, double per_second) {
  return per_second > 0 ? amount / per_second : 0.0;
}

}  // namespace

ModelCost model_cost(const Model& model, DType kv_type) {
  ModelCost cost;
  const Weights& weights = model.weights();
  for (const LayerWeights& layer : weights.layers) {
    for (const WeightView* view :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      (is_quantised(*view) ? cost.layer_int8_ops : cost.layer_float_ops) += ops_of(*view);
      cost.layer_bytes += bytes_of(*view);
    }
  }
  (is_quantised(weights.head) ? cost.head_int8_ops : cost.head_float_ops) = ops_of(weights.head);
  cost.head_bytes = bytes_of(weights.head);
  const Hyperparameters& h = model.hyperparameters();
  cost.kv_bytes_per_position =
      2.0 * h.layer_count * h.kv_head_count * h.head_dim * element_bytes(kv_type);
  return cost;
}

Bound least_time(const ModelCost& cost, const StepWork& work, const PeakRates& peak) {
  const double int8 = seconds(
      work.rows * cost.layer_int8_ops + work.logit_rows * cost.head_int8_ops, peak.int8_ops_per_s);
  const double fma = seconds(
      work.rows * cost.layer_float_ops + work.logit_rows * cost.head_float_ops, peak.fma_ops_per_s);
  const double bytes =
      work.steps * (cost.layer_bytes + (work.logit_rows > 0 ? cost.head_bytes : 0.0)) +
      work.kv_positions * cost.kv_bytes_per_position;
  const double read = seconds(bytes, peak.read_bytes_per_s);
  if (read > int8 + fma) return {read, "read"};
  return {int8 + fma, int8 >= fma ? "int8" : "fma"};
}

}  // namespace updraft
