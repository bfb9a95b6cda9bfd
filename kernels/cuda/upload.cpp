// A chunk is a matrix of its own with some of the rows; its sections are copied to where they lie
// in the whole.
#include "kernels/cuda/upload.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "common/base/check.h"
#include "kernels/quant/quant.h"

namespace updraft::cuda {
namespace {

constexpr int kThreadsMax = 16;

// One kind of data of a packed matrix, band of 16 rows after band of 16 rows.
struct Section {
  size_t offset;
  size_t band_bytes;
};

std::vector<Section> sections_of(const PackedLayout& layout) {
  // Of 256 bands each section is a whole number of alignments long.
  constexpr int64_t kBands = 256;
  const PackedLayout of = *PackedLayout::of(layout.type, kBands * kTileRows, layout.cols);
  std::vector<Section> out = {{0, static_cast<size_t>(of.quants_bytes / kBands)}};
  const int64_t begins[] = {of.high_offset, of.scales_offset, of.supers_offset, of.bytes};
  const int64_t offsets[] = {layout.high_offset, layout.scales_offset, layout.supers_offset};
  for (int i = 0; i < 3; ++i) {
    if (begins[i] == 0) continue;
    int64_t end = of.bytes;
    for (int j = i + 1; j < 4; ++j) {
      if (begins[j] != 0) end = std::min(end, begins[j]);
    }
    out.push_back(
        {static_cast<size_t>(offsets[i]), static_cast<size_t>((end - begins[i]) / kBands)});
  }
  return out;
}

// f(band range), on several threads.
template <typename Function>
void for_bands(int64_t bands, int thread_count, Function f) {
  constexpr int64_t kBandsAtOnce = 4;
  const int64_t pieces = (bands + kBandsAtOnce - 1) / kBandsAtOnce;
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t piece = next++; piece < pieces; piece = next++) {
      f(piece * kBandsAtOnce, std::min(bands, (piece + 1) * kBandsAtOnce));
    }
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < std::min<int64_t>(thread_count, pieces); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

// Rows of a part that fill a buffer at most, whole bands.
int64_t chunk_rows(const PackedLayout& layout) {
  const int64_t band_bytes = std::max<int64_t>(1, layout.bytes / (layout.rows_padded / kTileRows));
  const auto bands = static_cast<int64_t>(Uploader::kChunkBytes) / (2 * band_bytes);
  return std::max<int64_t>(1, bands) * kTileRows;
}

}  // namespace

Result<Uploader> Uploader::open(int thread_count) {
  Uploader out;
  out.thread_count_ = thread_count;
  if (thread_count == 0) {
    out.thread_count_ =
        std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kThreadsMax);
  }
  auto stream = OwnedStream::create();
  if (!stream) return stream.error();
  out.stream_ = std::move(*stream);
  return out;
}

void Uploader::pack(std::span<const WeightView> rows, const PackedLayout& layout,
                    std::span<std::byte> to) const {
  for_bands(layout.rows_padded / kTileRows, thread_count_, [&](int64_t first, int64_t end) {
    if (layout.gated) {
      pack_gated_tiles(rows[0], rows[1], layout, first, end, to);
    } else {
      pack_tiles(rows[0], layout, first, end, to);
    }
  });
}

Result<Uploader::Buffer*> Uploader::next_buffer(size_t bytes) {
  Buffer& buffer = buffers_[next_];
  next_ = 1 - next_;
  if (buffer.memory.bytes() != 0) {
    if (auto waited = buffer.copied.wait(); !waited) return waited.error();
  }
  if (buffer.memory.bytes() < bytes) {
    auto memory = PinnedMemory::allocate(std::max(bytes, kChunkBytes), "upload buffer");
    if (!memory) return memory.error();
    buffer.memory = std::move(*memory);
    auto event = Event::create();
    if (!event) return event.error();
    buffer.copied = std::move(*event);
  }
  return &buffer;
}

// Calls f(views, layout, band) for each chunk: the rows of a part, or the same rows of gate and up,
// as a matrix of its own that begins at a band of the whole.
template <typename Function>
Result<void> for_chunks(const PackedParts& matrix, int64_t rows_max, Function f) {
  const PackedLayout& whole = matrix.layout;
  const size_t together = whole.gated ? 2 : 1;
  int64_t row_first = 0;
  for (size_t p = 0; p < matrix.parts.size(); p += together) {
    const int64_t part_rows = matrix.parts[p].rows;
    for (int64_t r = 0; r < part_rows; r += rows_max) {
      const int64_t rows = std::min(rows_max, part_rows - r);
      std::vector<WeightView> views;
      for (size_t i = 0; i < together; ++i)
        views.push_back(row_range(matrix.parts[p + i], r, rows));
      const auto count = static_cast<int64_t>(together);
      const auto layout = PackedLayout::of(whole.type, rows * count, whole.cols, whole.gated);
      if (!layout) return layout.error();
      const auto band = static_cast<size_t>((row_first + r * count) / kTileRows);
      if (auto done = f(views, *layout, band); !done) return done;
    }
    row_first += part_rows;
  }
  return {};
}

Result<void> Uploader::to_device(const PackedParts& matrix, std::byte* to) {
  const std::vector<Section> to_sections = sections_of(matrix.layout);
  return for_chunks(
      matrix, chunk_rows(matrix.layout),
      [&](std::span<const WeightView> views, const PackedLayout& layout,
          size_t band) -> Result<void> {
        auto buffer = next_buffer(static_cast<size_t>(layout.bytes));
        if (!buffer) return buffer.error();
        std::byte* from = (*buffer)->memory.data();
        pack(views, layout, {from, static_cast<size_t>(layout.bytes)});
        const std::vector<Section> from_sections = sections_of(layout);
        const auto bands = static_cast<size_t>(layout.rows_padded / kTileRows);
        for (size_t s = 0; s < to_sections.size(); ++s) {
          const Section& section = to_sections[s];
          if (auto copied = copy_to_device(to + section.offset + band * section.band_bytes,
                                           from + from_sections[s].offset,
                                           bands * section.band_bytes, stream_.get());
              !copied) {
            return copied;
          }
        }
        return (*buffer)->copied.record(stream_.get());
      });
}

Result<void> Uploader::to_host(const PackedParts& matrix, std::span<std::byte> to) const {
  const std::vector<Section> to_sections = sections_of(matrix.layout);
  std::vector<std::byte> packed;
  return for_chunks(
      matrix, chunk_rows(matrix.layout),
      [&](std::span<const WeightView> views, const PackedLayout& layout,
          size_t band) -> Result<void> {
        packed.resize(static_cast<size_t>(layout.bytes));
        pack(views, layout, packed);
        const std::vector<Section> from_sections = sections_of(layout);
        const auto bands = static_cast<size_t>(layout.rows_padded / kTileRows);
        for (size_t s = 0; s < to_sections.size(); ++s) {
          std::memcpy(to.data() + to_sections[s].offset + band * to_sections[s].band_bytes,
                      packed.data() + from_sections[s].offset, bands * to_sections[s].band_bytes);
        }
        return {};
      });
}

Result<void> Uploader::wait() { return cuda::wait(stream_.get()); }

}  // namespace updraft::cuda
