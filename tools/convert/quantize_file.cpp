// Quantising a model: which format each tensor gets, then slab after slab through all threads while
// the finished slab before it is on its way to the disk.
#include "tools/convert/quantize_file.h"

#include <algorithm>
#include <filesystem>
#include <future>

#include "kernels/cpu/thread_pool.h"
#include "kernels/quant/quant.h"
#include "tools/convert/source_model.h"

namespace updraft {
namespace {

constexpr int64_t kSlabBytes = 32 << 20;  // of output, in memory twice
constexpr int64_t kItemValues = 1 << 16;  // weights that one thread takes at a time, at least a row

bool is_quantised(DType type) { return dtype_info(type).block_elems > 1; }

class Quantizer {
 public:
  Quantizer(const QuantizeConfig& config, const SourceModel& source, ThreadPool& pool,
            const Progress& progress)
      : config_(config), source_(source), pool_(pool), progress_(progress) {}

  Result<QuantizeReport> run() {
    if (auto declared = declare(); !declared) return declared.error();
    Result<void> done = writer_.begin(config_.output);
    for (size_t i = 0; done && i < source_.tensors.size(); ++i) done = write_tensor(i);
    if (auto last = wait_for_disk(); done) done = last;
    if (done) done = writer_.finish();
    if (!done) return done.error();
    return report_;
  }

 private:
  Result<void> declare() {
    source_.set_keys(writer_);
    writer_.set_u32("general.file_type", file_type_gguf_number(config_.type));
    writer_.set_u32("general.quantization_version", 2);
    for (const SourceTensor& tensor : source_.tensors) {
      DType type = tensor.type;
      if (is_quantisable(tensor.name, tensor.ne))
        type = tensor_type(config_.type, tensor.name, tensor.ne[0], source_.mix);
      if (type != tensor.type && is_quantised(tensor.type) && !config_.allow_requantize) {
        return fail(config_.input + ": tensor " + tensor.name + " is already " +
                    dtype_info(tensor.type).name +
                    "; rounding it again loses quality. Give the f16, bf16 or f32 file, or "
                    "--allow-requantize");
      }
      types_.push_back(type);
      writer_.add_tensor(tensor.name, type, tensor.ne);
      ++report_.tensors[static_cast<size_t>(type)];
      const uint64_t bytes = tensor.values.empty()
                                 ? static_cast<uint64_t>(tensor.row_count()) *
                                       static_cast<uint64_t>(row_bytes(
                                           tensor.type, static_cast<int64_t>(tensor.ne[0])))
                                 : tensor.values.size() * sizeof(float);
      report_.input_bytes += bytes;
    }
    for (size_t i = 0; i < types_.size(); ++i) report_.output_bytes += writer_.tensor_bytes(i);
    return {};
  }

  // The writer belongs to one thread at a time: the one that this waits for, or the caller.
  Result<void> wait_for_disk() { return writing_.valid() ? writing_.get() : Result<void>(); }

  // Hands the slab's first `bytes` to the disk and takes the other slab.
  Result<void> put(size_t bytes) {
    if (auto written = wait_for_disk(); !written) return written;
    std::swap(slab_, on_its_way_);
    writing_ = std::async(std::launch::async, [this, bytes] {
      return writer_.write(std::span<const std::byte>(on_its_way_).first(bytes));
    });
    done_bytes_ += bytes;
    if (progress_) progress_("quantising", done_bytes_, report_.output_bytes);
    return {};
  }

  Result<void> write_tensor(size_t index) {
    const SourceTensor& tensor = source_.tensors[index];
    if (!tensor.values.empty()) {
      const ByteView bytes = std::as_bytes(std::span(tensor.values));
      slab_.assign(bytes.begin(), bytes.end());
      return put(slab_.size());
    }
    const DType type = types_[index];
    const auto cols = static_cast<int64_t>(tensor.ne[0]);
    const int64_t out_row_bytes = row_bytes(type, cols);
    const int64_t item_rows = std::max<int64_t>(1, kItemValues / cols);
    const int64_t slab_rows =
        std::max<int64_t>(1, kSlabBytes / out_row_bytes / item_rows) * item_rows;
    const int64_t rows = tensor.row_count();
    for (int64_t first = 0; first < rows; first += slab_rows) {
      const int64_t count = std::min(slab_rows, rows - first);
      slab_.resize(static_cast<size_t>(count * out_row_bytes));
      pool_.for_each((count + item_rows - 1) / item_rows, [&](int64_t item, int) {
        const int64_t begin = first + item * item_rows;
        const int64_t end = std::min(begin + item_rows, first + count);
        encode_rows(tensor, type, begin, end, slab_.data() + (begin - first) * out_row_bytes);
      });
      if (auto written = put(slab_.size()); !written) return written;
    }
    return {};
  }

  static void encode_rows(const SourceTensor& tensor, DType type, int64_t begin, int64_t end,
                          std::byte* out) {
    const auto cols = static_cast<int64_t>(tensor.ne[0]);
    const auto out_row_bytes = static_cast<size_t>(row_bytes(type, cols));
    thread_local std::vector<float> values;
    values.resize(static_cast<size_t>(cols));
    for (int64_t r = begin; r < end; ++r, out += out_row_bytes) {
      const std::byte* row = tensor.row(r);
      if (type == tensor.type) {
        std::copy(row, row + out_row_bytes, out);
        continue;
      }
      dequantize_row(tensor.type, row, values);
      quantize_row(type, values, out);
    }
  }

  const QuantizeConfig& config_;
  const SourceModel& source_;
  ThreadPool& pool_;
  const Progress& progress_;
  GgufWriter writer_;
  std::vector<DType> types_;  // of the output
  std::vector<std::byte> slab_;
  std::vector<std::byte> on_its_way_;
  std::future<Result<void>> writing_;  // after what it uses: it is joined before they go
  uint64_t done_bytes_ = 0;
  QuantizeReport report_;
};

}  // namespace

Result<QuantizeReport> quantize_file(const QuantizeConfig& config, const Progress& progress) {
  std::error_code ignored;
  if (std::filesystem::equivalent(config.input, config.output, ignored))
    return fail(config.output + ": is the input");
  const auto source = open_source(config.input);
  if (!source) return source.error();
  ThreadPool::Config threads;
  threads.thread_count =
      config.thread_count > 0 ? config.thread_count : static_cast<int>(process_cores().size());
  auto pool = ThreadPool::open(threads);
  if (!pool) return pool.error();
  return Quantizer(config, *source, **pool, progress).run();
}

}  // namespace updraft
