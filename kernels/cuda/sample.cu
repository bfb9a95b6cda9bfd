// One block per row. What is kept is always "all tokens above a logit, and of those equal to it the
// first few by id": the cut is found digit by digit of the logit's bits, by histograms of counts
// (top_k) or of probability (top_p). Then the row is added up in order of id until the draw is
// reached.
#include <string>

#include "kernels/cuda/device.h"
#include "kernels/cuda/sample.h"

namespace updraft::cuda {
namespace {

using Mass = unsigned long long;  // the 64-bit type that atomics take

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kVector = 4;     // logits of a load
constexpr int kAhead = 2;      // loads of a thread under way
constexpr int kWalked = 1024;  // tokens among which one warp looks for the drawn one
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr float kLog2E = 1.4426950408889634F;
constexpr float kGreedyTemperature = 1e-5F;  // as the host's sampler has it
constexpr float kUnit = 1099511627776.0F;    // 2^40: the likeliest token's probability

// Floats in the order of their values as unsigned integers; 0 is below all of them.
UPDRAFT_DEVICE uint32_t order_of(float value) {
  const uint32_t bits = float_bits(value == 0.0F ? 0.0F : value);  // -0 equals 0
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
UPDRAFT_DEVICE float value_of(uint32_t order) {
  return bits_float((order & 0x80000000U) != 0 ? order & 0x7FFFFFFFU : ~order);
}

struct Row {
  const float* logits;
  int vocab;
  float top;         // the largest logit
  float scale_log2;  // log2(e) / temperature
  float floor;       // logits below are left out
};

// f(id, logit, whether there is one) of the tokens begin .. end - 1, by kCount threads of which
// this one is `index`; all of them come as often, so whole warps are in f together. `begin` is a
// multiple of kVector.
template <int kCount, typename Do>
UPDRAFT_DEVICE void each_logit(const Row& row, int begin, int end, int index, const Do& f) {
  const bool aligned = row.vocab % kVector == 0;  // then each row begins on 16 bytes
  for (int base = begin; base < end; base += kCount * kVector * kAhead) {
    float logits[kAhead][kVector];
    UPDRAFT_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      const int at = base + (a * kCount + index) * kVector;
      if (aligned && at < end) {
        const Vec16 bits = load_written(reinterpret_cast<const Vec16*>(row.logits + at));
        UPDRAFT_UNROLL
        for (int j = 0; j < kVector; ++j) logits[a][j] = bits_float(bits.word[j]);
      } else {
        UPDRAFT_UNROLL
        for (int j = 0; j < kVector; ++j) {
          logits[a][j] = at + j < end ? load_written(row.logits + at + j) : 0.0F;
        }
      }
    }
    UPDRAFT_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      UPDRAFT_UNROLL
      for (int j = 0; j < kVector; ++j) {
        const int id = base + (a * kCount + index) * kVector + j;
        f(id, logits[a][j], id < end);
      }
    }
  }
}
template <typename Do>
UPDRAFT_DEVICE void each_logit(const Row& row, const Do& f) {
  each_logit<kThreads>(row, 0, row.vocab, static_cast<int>(thread_x()), f);
}

UPDRAFT_DEVICE Mass mass_of(const Row& row, float logit) {
  return static_cast<Mass>(exp2_fast((logit - row.top) * row.scale_log2) * kUnit);
}

// The tokens above `order`, and of those equal to it the first `ties` by id.
struct Cut {
  uint32_t order;
  uint32_t ties;
};

// What the threads of a block tell each other.
struct Shared {
  Mass histogram[kDigits];
  Mass sums[kWarps];
  uint32_t counts[kWarps];
  Mass above;      // measure of what lies above the chosen digits
  Mass remainder;  // what the draw still has to pass within its segment
  uint32_t digit;
  uint32_t segment;
  uint32_t ties_before;
};

// Sum over the block of values that do not depend on the order of addition.
UPDRAFT_DEVICE Mass block_total(Mass value, Shared* shared) {
  UPDRAFT_UNROLL
  for (uint32_t step = 16; step > 0; step /= 2) value += shuffle_xor(value, step);
  sync_block();
  if (thread_x() % 32 == 0) shared->sums[thread_x() / 32] = value;
  sync_block();
  Mass total = 0;
  UPDRAFT_UNROLL
  for (int w = 0; w < kWarps; ++w) total += shared->sums[w];
  return total;
}

// The digit, from the largest down, at which the sum of the histogram reaches `target`; by warp 0.
UPDRAFT_DEVICE void find_digit(Mass target, Shared* shared) {
  constexpr int kPer = kDigits / 32;
  const int lane = static_cast<int>(thread_x());
  Mass own = 0;
  UPDRAFT_UNROLL
  for (int i = 0; i < kPer; ++i) own += shared->histogram[kDigits - 1 - lane * kPer - i];
  Mass upto = own;
  UPDRAFT_UNROLL
  for (uint32_t step = 1; step < 32; step *= 2) {
    const Mass before = shuffle_up(upto, step);
    if (lane >= static_cast<int>(step)) upto += before;
  }
  Mass above = upto - own;
  sync_warp();  // all have taken their target from shared->above
  if (above < target && target <= upto) {
    for (int i = 0; i < kPer; ++i) {
      const int digit = kDigits - 1 - lane * kPer - i;
      const Mass here = shared->histogram[digit];
      if (above + here >= target) {
        shared->digit = static_cast<uint32_t>(digit);
        shared->above += above;
        break;
      }
      above += here;
    }
  }
}

// Adds `measure` to its digit's place in the histogram, by a whole warp. The first digit of logits
// (sign and exponent) has few values: those that most lanes share are added up before they go there
// together, where lanes that meet one place go one after another.
UPDRAFT_DEVICE void add_measure(bool counts, uint32_t digit, Mass measure, bool together,
                                Mass* histogram) {
  constexpr int kRounds = 4;
  constexpr int kLowBits = 26;  // of a measure of up to 2^40; 32 of them fit a register
  uint32_t left = ballot(counts);
  const uint32_t lane = thread_x() % 32;
  UPDRAFT_NO_UNROLL
  for (int round = 0; together && round < kRounds && left != 0; ++round) {
    const auto first = static_cast<uint32_t>(first_bit(left));
    const uint32_t its = shuffle(digit, first);
    const bool same = counts && digit == its;
    const uint32_t low =
        reduce_add(same ? static_cast<uint32_t>(measure & ((1U << kLowBits) - 1U)) : 0U);
    const uint32_t high = reduce_add(same ? static_cast<uint32_t>(measure >> kLowBits) : 0U);
    if (lane == first) {
      atomic_add(&histogram[its], (static_cast<Mass>(high) << kLowBits) + low);
    }
    left &= ~ballot(same);
  }
  if ((left >> lane & 1U) != 0) atomic_add(&histogram[digit], measure);
}

// The smallest cut whose measure (tokens, or their mass) reaches `target`, which is at least 1 and
// at most that of all.
template <bool kByMass>
UPDRAFT_DEVICE Cut find_cut(const Row& row, Mass target, Shared* shared) {
  uint32_t prefix = 0;
  sync_block();
  if (thread_x() == 0) shared->above = 0;
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = static_cast<int>(thread_x()); i < kDigits; i += kThreads) shared->histogram[i] = 0;
    sync_block();
    each_logit(row, [&](int, float logit, bool is_token) {
      const uint32_t order = order_of(logit);
      const bool counts = is_token && !(logit < row.floor) &&
                          (shift >= 24 || (order ^ prefix) >> (shift + kDigitBits) == 0);
      const Mass measure = !counts ? Mass{0} : kByMass ? mass_of(row, logit) : Mass{1};
      add_measure(counts, order >> shift & (kDigits - 1), measure, shift >= 24, shared->histogram);
    });
    sync_block();
    if (thread_x() < 32) find_digit(target - shared->above, shared);
    sync_block();
    prefix |= shared->digit << shift;
  }
  const Mass left = target - shared->above;
  const Mass each = kByMass ? mass_of(row, value_of(prefix)) : Mass{1};
  return {prefix, static_cast<uint32_t>((left + each - 1) / each)};
}

UPDRAFT_DEVICE Mass mass_above(const Row& row, uint32_t order, Shared* shared) {
  Mass sum = 0;
  each_logit(row, [&](int, float logit, bool is_token) {
    if (is_token && logit >= row.floor && order_of(logit) > order) sum += mass_of(row, logit);
  });
  return block_total(sum, shared);
}

// The token at which the masses of the kept tokens, added in order of id, exceed `target`.
UPDRAFT_DEVICE void draw(const Row& row, const Cut& cut, Mass target, int32_t* token,
                         Shared* shared) {
  const int warp = static_cast<int>(thread_x()) / 32;
  const int lane = static_cast<int>(thread_x()) % 32;
  const Mass tie = mass_of(row, value_of(cut.order));
  int begin = 0;
  int end = row.vocab;
  Mass left = target;
  uint32_t before = 0;  // ties in front of `begin`
  // Each warp adds up one segment; the one that the draw falls into is cut into segments again.
  while (end - begin > kWalked) {
    constexpr int kTogether = kWarps * 32 * kVector;
    const int per = (end - begin + kTogether - 1) / kTogether * (32 * kVector);
    const int own = begin + warp * per;
    const int own_end = own + per < end ? own + per : end;
    Mass sum = 0;
    uint32_t ties = 0;
    each_logit<32>(row, own, own_end, lane, [&](int, float logit, bool is_token) {
      const uint32_t order = order_of(logit);
      if (is_token && order > cut.order) sum += mass_of(row, logit);
      if (is_token && order == cut.order) ++ties;
    });
    UPDRAFT_UNROLL
    for (uint32_t step = 16; step > 0; step /= 2) {
      sum += shuffle_xor(sum, step);
      ties += shuffle_xor(ties, step);
    }
    sync_block();
    if (lane == 0) {
      shared->sums[warp] = sum;
      shared->counts[warp] = ties;
    }
    sync_block();
    if (thread_x() == 0) {
      for (int w = 0; w < kWarps; ++w) {
        const uint32_t room = cut.ties - before;
        const uint32_t kept = shared->counts[w] < room ? shared->counts[w] : room;
        const Mass here = shared->sums[w] + kept * tie;
        if (left < here) {
          shared->segment = static_cast<uint32_t>(w);
          shared->ties_before = before;
          shared->remainder = left;
          break;
        }
        left -= here;
        before += kept;
      }
    }
    sync_block();
    begin += static_cast<int>(shared->segment) * per;
    end = begin + per < end ? begin + per : end;
    left = shared->remainder;
    before = shared->ties_before;
  }
  if (warp != 0) return;

  for (int i = begin; i < end; i += 32) {
    const bool is_token = i + lane < end;
    const float logit = is_token ? load_written(row.logits + i + lane) : 0.0F;
    const uint32_t order = is_token ? order_of(logit) : 0U;
    const uint32_t equal = ballot(is_token && order == cut.order);
    const auto rank = before + static_cast<uint32_t>(count_bits(equal & ((1U << lane) - 1U)));
    const bool kept = is_token && (order > cut.order || (order == cut.order && rank < cut.ties));
    Mass upto = kept ? mass_of(row, logit) : Mass{0};
    UPDRAFT_UNROLL
    for (uint32_t step = 1; step < 32; step *= 2) {
      const Mass other = shuffle_up(upto, step);
      if (lane >= static_cast<int>(step)) upto += other;
    }
    const uint32_t reached = ballot(upto > left);
    if (reached != 0) {
      if (lane == first_bit(reached)) *token = i + lane;
      return;
    }
    left -= shuffle(upto, 31);
    before += static_cast<uint32_t>(count_bits(equal));
    if (before > cut.ties) before = cut.ties;
  }
}

UPDRAFT_KERNEL(kThreads)
sample_kernel(Sample in) {
  let_next_start();
  wait_for_previous();
  Shared* shared = shared_array<Shared, 1>();
  const SampleRow how = in.how[block_x()];
  int32_t* token = in.tokens + block_x();
  Row row{};
  row.logits = in.logits + static_cast<int64_t>(block_x()) * in.vocab;
  row.vocab = in.vocab;

  // The largest logit and, among equals, the smallest id: in one number. NaN and +infinity are
  // found on the way.
  Mass best = 0;
  Mass bad = 0;
  each_logit(row, [&](int id, float logit, bool is_token) {
    if (!is_token) return;
    if (!(logit <= 3.4028234e38F)) ++bad;
    const Mass candidate =
        static_cast<Mass>(order_of(logit)) << 32 | (0xFFFFFFFFU - static_cast<uint32_t>(id));
    best = best > candidate ? best : candidate;
  });
  UPDRAFT_UNROLL
  for (uint32_t step = 16; step > 0; step /= 2) {
    const Mass other = shuffle_xor(best, step);
    best = best > other ? best : other;
  }
  bad = block_total(bad, shared);
  sync_block();
  if (thread_x() % 32 == 0) shared->sums[thread_x() / 32] = best;
  sync_block();
  for (int w = 0; w < kWarps; ++w) best = best > shared->sums[w] ? best : shared->sums[w];
  row.top = value_of(static_cast<uint32_t>(best >> 32));
  const auto top_id = static_cast<int32_t>(0xFFFFFFFFU - static_cast<uint32_t>(best));
  const bool none = row.top < -3.4028234e38F;
  if (bad != 0 || none || how.temperature < kGreedyTemperature) {
    if (thread_x() == 0) *token = bad != 0 || none ? -1 : top_id;
    return;
  }

  row.scale_log2 = kLog2E / how.temperature;
  // A token below half a unit of mass is never drawn: 2^-41 of the likeliest.
  constexpr float kLeastLog2 = -40.0F;
  const float min_log2 = how.min_p > 0.0F ? log2_of(how.min_p) : kLeastLog2;
  row.floor = row.top + (min_log2 > kLeastLog2 ? min_log2 : kLeastLog2) / row.scale_log2;

  Mass mass = 0;
  Mass count = 0;
  each_logit(row, [&](int, float logit, bool is_token) {
    if (!is_token || logit < row.floor) return;
    mass += mass_of(row, logit);
    ++count;
  });
  mass = block_total(mass, shared);
  count = block_total(count, shared);
  Cut cut{order_of(row.floor), 0xFFFFFFFFU};
  if (how.top_k > 0 && static_cast<Mass>(how.top_k) < count) {
    cut = find_cut<false>(row, static_cast<Mass>(how.top_k), shared);
    mass = mass_above(row, cut.order, shared) + cut.ties * mass_of(row, value_of(cut.order));
  }
  if (how.top_p < 1.0F) {
    auto target = static_cast<Mass>(static_cast<double>(how.top_p) * static_cast<double>(mass));
    if (target < 1) target = 1;
    cut = find_cut<true>(row, target, shared);
    mass = mass_above(row, cut.order, shared) + cut.ties * mass_of(row, value_of(cut.order));
  }
  auto target = static_cast<Mass>(how.uniform * static_cast<double>(mass));
  if (target >= mass) target = mass - 1;
  draw(row, cut, target, token, shared);
}

}  // namespace

Result<void> run_sample(const Sample& op, Stream stream) {
  if (op.rows < 1 || op.vocab < 1) {
    return fail("sample: " + std::to_string(op.rows) + " rows of " + std::to_string(op.vocab) +
                " logits");
  }
  LaunchShape shape;
  shape.grid = {static_cast<uint32_t>(op.rows), 1, 1};
  shape.block = {kThreads, 1, 1};
  shape.early_start = true;
  return launch(sample_kernel, shape, stream, op);
}

}  // namespace updraft::cuda
