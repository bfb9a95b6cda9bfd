// updraft_gpu: the measurements and comparisons of tools/gpu_check, one JSON line each on standard
// output.
//
//   updraft_gpu ceilings                what the GPU can do at best
//   updraft_gpu parity FOLDER           the engine against transformers (compare_transformers.py)
//   updraft_gpu products [--smoke]      ways of wide products against the tensor cores' rate; first
//                                       whether the kernels for capability 9.0 are right here
//   updraft_gpu attention [--smoke]     attention kernels against the memory's bandwidth
//   updraft_gpu model [--smoke]         decode, prefill and requests on models of real shapes
//   updraft_gpu load FOLDER [--smoke]   a model file onto the device, against the disk's rate
//   updraft_gpu gguf SHAPE FORMAT FILE  a random model as a file, for comparing with peers
//   updraft_gpu file FILE               what llama-bench and llama-batched-bench measure, on it
//
// --without-warpgroups: leave the kernels for capability 9.0 alone, for a GPU that they fault on.
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "tools/gpu/attention_bench.h"
#include "tools/gpu/device.h"
#include "tools/gpu/load_bench.h"
#include "tools/gpu/model_bench.h"
#include "tools/gpu/parity.h"
#include "tools/gpu/product_bench.h"
#include "tools/gpu/random_file.h"

namespace {

using namespace updraft;
using namespace updraft::gpu;

int complain(const std::string& why) {
  std::fprintf(stderr, "updraft_gpu: %s\n", why.c_str());
  return 1;
}

void print_ceilings(const Ceilings& found) {
  const auto line = [&](const char* name, double value, const char* unit) {
    Line out;
    out.group = "ceiling";
    out.name = name;
    out.value = value;
    out.unit = unit;
    out.note = found.device;
    print(out);
  };
  line("copy", found.copy_bytes_per_s * 1e-9, "GB/s");
  line("read", found.read_bytes_per_s * 1e-9, "GB/s");
  line("cublas bf16", found.bf16_per_s * 1e-12, "T/s");
  line("cublas int8", found.int8_per_s * 1e-12, "T/s");
  line("upload", found.upload_bytes_per_s * 1e-9, "GB/s");
  line("launch", found.launch_s * 1e6, "us");
  line("launch in a graph", found.graph_launch_s * 1e6, "us");
}

Result<void> write_gguf(const std::vector<std::string>& words) {
  if (words.size() != 4) return fail("gguf: give SHAPE FORMAT FILE");
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto type = static_cast<DType>(i);
    if (words[2] == dtype_info(type).name) return write_random_gguf(words[1], type, words[3]);
  }
  return fail("'" + words[2] + "' is no format: Q4_0, Q8_0, BF16, ...");
}

// The device with 16-bit weights multiplied in 8, by the format's name.
std::vector<std::pair<std::string, OpenBackend>> with_activations(const CudaConfig& device) {
  std::vector<std::pair<std::string, OpenBackend>> out;
  const auto properties = cuda::device_properties(0);
  for (const CudaActivations activations : {CudaActivations::kInt8, CudaActivations::kFp8}) {
    // The tensor cores before 9.0 take no e4m3.
    const bool takes = properties.ok() && properties->compute_major >= 9;
    if (activations == CudaActivations::kFp8 && !takes) continue;
    CudaConfig other = device;
    other.activations = activations;
    out.emplace_back(cuda_activations_name(activations), [other] { return open_device(other); });
  }
  return out;
}

int run(const std::vector<std::string>& words, bool smoke, bool warpgroups) {
  // The kernels for capability 9.0 are asked whether they are right when a device is opened: one
  // that faults takes the process's device with it.
  CudaConfig device;
  device.warpgroups = warpgroups;
  const OpenBackend open = [device] { return open_device(device); };
  const std::string what = words.empty() ? "" : words[0];
  const std::string path = words.size() > 1 ? words[1] : "";
  // A smoke run asks whether the program works, not how fast the device is.
  Ceilings ceilings;
  if (what == "ceilings" || (!smoke && (what == "products" || what == "attention" ||
                                        what == "model" || what == "load"))) {
    const auto measured = device_ceilings();
    if (!measured) return complain(measured.message());
    ceilings = *measured;
    print_ceilings(ceilings);
  }
  if (what == "ceilings") return 0;
  if (what == "parity") {
    // Its models have the same few shapes: what was chosen for one is there for the next.
    device.tune_folder = path + ".choices";
    const OpenBackend open = [device] { return open_device(device); };
    const auto done = run_parity(path, open, with_activations(device), print);
    return done ? 0 : complain(done.message());
  }
  if (what == "products") {
    const auto done = run_product_bench({ceilings, smoke}, print);
    return done ? 0 : complain(done.message());
  }
  if (what == "attention") {
    const auto done = run_attention_bench({ceilings, smoke, warpgroups}, print);
    return done ? 0 : complain(done.message());
  }
  if (what == "model") {
    ModelBenchConfig config;
    config.ceilings = ceilings;
    config.smoke = smoke;
    config.repetitions = smoke ? 1 : 5;
    config.activations = with_activations(device);
    run_model_bench(config, open, print);
    return 0;
  }
  if (what == "load") {
    if (path.empty()) return complain("load: give FOLDER, where there is room for 7 GB");
    const auto done = run_load_bench({ceilings, path, smoke}, open, print);
    return done ? 0 : complain(done.message());
  }
  if (what == "gguf" || what == "file") {
    const auto done = what == "gguf" ? write_gguf(words) : run_file_bench(path, open, print);
    return done ? 0 : complain(done.message());
  }
  return complain("'" + what +
                  "' is none of ceilings, parity, products, attention, model, load, gguf, file");
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::string> words;
  bool smoke = false;
  bool warpgroups = true;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--smoke") == 0) {
      smoke = true;
    } else if (std::strcmp(arguments[i], "--without-warpgroups") == 0) {
      warpgroups = false;
    } else {
      words.emplace_back(arguments[i]);
    }
  }
  return run(words, smoke, warpgroups);
}
