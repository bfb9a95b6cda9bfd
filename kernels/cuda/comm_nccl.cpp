// See the header. NCCL's declarations are written out here, as far as they are used, so that
// building needs no nccl.h; they have been the same since 2.18.
//
// No memory is registered: a window takes memory that ncclMemAlloc() or the driver's cuMemCreate()
// made, and cudaMalloc() made ours. Where all GPUs reach each other NCCL 2.27 to 2.30 does not pass
// over such memory but fails (cuMemRetainAllocationHandle), and the group is lost.
#include "kernels/cuda/comm_nccl.h"

#include <dlfcn.h>

#include <algorithm>
#include <utility>

#include "common/base/check.h"

namespace updraft::cuda {
namespace {

struct NcclCommunicator;
using NcclResult = int;  // 0: success
constexpr int kSum = 0;

int nccl_type(Comm::Values type) {
  switch (type) {
    case Comm::Values::kF16:
      return 6;
    case Comm::Values::kF32:
      return 7;
    case Comm::Values::kBF16:
      return 9;
  }
  UPDRAFT_CHECK(false, "a type of values");
  return -1;
}

// The library's functions. Loaded once, never closed: its threads outlive what is asked of them.
struct Nccl {
  NcclResult (*get_version)(int*) = nullptr;
  const char* (*get_error_string)(NcclResult) = nullptr;
  NcclResult (*comm_init_all)(NcclCommunicator**, int, const int*) = nullptr;
  NcclResult (*comm_destroy)(NcclCommunicator*) = nullptr;
  NcclResult (*all_reduce)(const void*, void*, size_t, int, int, NcclCommunicator*,
                           CUstream_st*) = nullptr;
  int version = 0;

  std::string explain(const char* what, NcclResult result) const {
    return std::string(what) + ": " + get_error_string(result) + " (" + std::to_string(result) +
           ")";
  }
};

Result<Nccl> load_nccl() {
  constexpr const char* kName = "libnccl.so.2";
  void* library = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = dlerror();
    return fail(std::string("several GPUs need NCCL: ") + (why != nullptr ? why : kName));
  }
  Nccl nccl;
  std::string missing;
  const auto need = [&](auto& function, const char* name) {
    using Function = std::remove_reference_t<decltype(function)>;
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr && missing.empty()) missing = name;
  };
  need(nccl.get_version, "ncclGetVersion");
  need(nccl.get_error_string, "ncclGetErrorString");
  need(nccl.comm_init_all, "ncclCommInitAll");
  need(nccl.comm_destroy, "ncclCommDestroy");
  need(nccl.all_reduce, "ncclAllReduce");
  if (!missing.empty()) return fail(std::string(kName) + " has no " + missing);
  if (const NcclResult result = nccl.get_version(&nccl.version); result != 0)
    return fail(nccl.explain("ncclGetVersion", result));
  return nccl;
}

class NcclComm final : public Comm {
 public:
  NcclComm(const Nccl& nccl, NcclCommunicator* comm, int32_t rank, int32_t size)
      : nccl_(nccl), comm_(comm), rank_(rank), size_(size) {}
  ~NcclComm() override { nccl_.comm_destroy(comm_); }

  int32_t rank() const override { return rank_; }
  int32_t size() const override { return size_; }
  std::string description() const override { return describe_nccl(nccl_.version); }

  Result<void> all_reduce(void* values, int64_t count, Values type, CUstream_st* stream) override {
    const NcclResult result = nccl_.all_reduce(values, values, static_cast<size_t>(count),
                                               nccl_type(type), kSum, comm_, stream);
    if (result == 0) return {};
    return fail(nccl_.explain("ncclAllReduce", result) + " at device " + std::to_string(rank_) +
                " of " + std::to_string(size_));
  }

 private:
  const Nccl nccl_;
  NcclCommunicator* const comm_;
  const int32_t rank_;
  const int32_t size_;
};

}  // namespace

std::string describe_nccl(int version) {
  // Since 2.9 it is major * 10000 + minor * 100 + patch.
  std::string out = "NCCL " + std::to_string(version / 10000) + "." +
                    std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
  if (version < 23004) out += " (graphs that span hosts can stall before 2.30.4)";
  return out;
}

Result<std::vector<std::shared_ptr<Comm>>> open_nccl_comms(std::span<const int32_t> devices) {
  UPDRAFT_CHECK(!devices.empty());
  for (size_t i = 0; i < devices.size(); ++i) {
    if (std::find(devices.begin() + static_cast<ptrdiff_t>(i) + 1, devices.end(), devices[i]) !=
        devices.end())
      return fail("GPU " + std::to_string(devices[i]) + " is given twice");
  }
  const Result<Nccl> nccl = load_nccl();
  if (!nccl) return nccl.error();
  std::vector<NcclCommunicator*> made(devices.size(), nullptr);
  const std::vector<int> list(devices.begin(), devices.end());
  const NcclResult result =
      nccl->comm_init_all(made.data(), static_cast<int>(list.size()), list.data());
  if (result != 0) {
    std::string names;
    for (const int device : list) names += (names.empty() ? "" : ", ") + std::to_string(device);
    return fail(nccl->explain("ncclCommInitAll", result) + " for the GPUs " + names);
  }
  std::vector<std::shared_ptr<Comm>> comms;
  for (size_t i = 0; i < made.size(); ++i) {
    comms.push_back(std::make_shared<NcclComm>(*nccl, made[i], static_cast<int32_t>(i),
                                               static_cast<int32_t>(made.size())));
  }
  return comms;
}

}  // namespace updraft::cuda
