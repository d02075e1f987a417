// y = drop(silu(gain * normalised(x + added) + offset)) and its gradient, on images stored (N, H W, C): channels last.
// The dropout, or both SiLU and dropout, may be left out.
//
// normalised: over each group of channels of a sample, in float32. gain, offset, added: (N, C), float32. The rows (pixels)
// of a sample are cut into blocks whose sums are combined in one order, so results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t kRows = 64;  // pixels in a block

struct bfloat16 {
  uint16_t bits;
};

inline float load(float x) { return x; }

inline float load(bfloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline void store(float& to, float value) { to = value; }

inline void store(bfloat16& to, float value) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = uint16_t(value == value ? rounded : 0x7fc0u);
}

// exp(-|v|) as 2^n exp(r) with |r| <= ln 2 / 2 and a polynomial of degree 6: relative error 2e-7. |v| ends at 87, by
// integers: comparisons of floats would become branches that keep compilers from good loops.
inline float decay(float v) {
  int32_t bits;
  std::memcpy(&bits, &v, 4);
  bits = std::min(bits & 0x7fffffff, 0x42ae0000);
  float x;
  std::memcpy(&x, &bits, 4);
  const float shift = 12582912.0f;  // 1.5 2^23: adding it rounds to an integer
  const float n = (x * -1.44269504f + shift) - shift;
  const float r = (-n * 0.693359375f - x) + n * 2.12194440e-4f;  // the first difference is exact
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float sigmoid(float v) {
  const float e = decay(v);
  return (v < 0.0f ? e : 1.0f) / (1.0f + e);
}

template <bool kSilu>
float activation(float v) {
  return kSilu ? v * sigmoid(v) : v;
}

template <bool kSilu>
float derivative(float v) {
  if (!kSilu) return 1.0f;
  const float s = sigmoid(v);
  return s * (1.0f + v * (1.0f - s));
}

template <bool kDrops>
float keep(float value, const uint8_t* bytes, int64_t c, int32_t limit) {
  return !kDrops || int32_t(bytes[c]) >= limit ? value : 0.0f;
}

struct Shape {
  int64_t samples, pixels, channels, groups;
  int64_t blocks() const { return (pixels + kRows - 1) / kRows; }
  int64_t wide() const { return channels / groups; }
};

// Sums of a block of pixels, for each channel: those of sample n, block b stand at ((n blocks + b) channels).
using Sums = std::vector<float>;

// Mean and 1 / standard deviation of every group, from each block's own mean and squared deviations (Chan et al. 1983).
template <typename T>
void statistics(const T* x, const float* added, Shape s, float eps, float* mean, float* rstd, int threads) {
  const int64_t C = s.channels, K = s.blocks();
  Sums means(s.samples * K * C), deviations(s.samples * K * C);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t job = 0; job < s.samples * K; ++job) {
    const int64_t n = job / K, first = (job % K) * kRows, last = std::min(first + kRows, s.pixels);
    const T* __restrict rows = x + n * s.pixels * C;
    float* __restrict sum = means.data() + job * C;
    float* __restrict square = deviations.data() + job * C;
    const T* __restrict origin = rows + first * C;  // sums of differences to it do not cancel
    for (int64_t row = first; row < last; ++row) {
      const T* __restrict at = rows + row * C;
      for (int64_t c = 0; c < C; ++c) {
        float difference = load(at[c]) - load(origin[c]);
        sum[c] += difference;
        square[c] += difference * difference;
      }
    }
    const float count = float(last - first);
    for (int64_t c = 0; c < C; ++c) {
      float m = sum[c] / count;
      square[c] -= count * m * m;
      sum[c] = m + load(origin[c]) + (added ? added[n * C + c] : 0.0f);
    }
  }
  for (int64_t n = 0; n < s.samples; ++n)
    for (int64_t g = 0; g < s.groups; ++g) {
      double total = 0, spread = 0;
      for (int64_t b = 0; b < K; ++b) {
        const double count = double(std::min(kRows, s.pixels - b * kRows));
        for (int64_t c = g * s.wide(); c < (g + 1) * s.wide(); ++c) total += count * means[(n * K + b) * C + c];
      }
      const double all = double(s.pixels * s.wide()), m = total / all;
      for (int64_t b = 0; b < K; ++b) {
        const double count = double(std::min(kRows, s.pixels - b * kRows));
        for (int64_t c = g * s.wide(); c < (g + 1) * s.wide(); ++c) {
          const double off = means[(n * K + b) * C + c] - m;
          spread += deviations[(n * K + b) * C + c] + count * off * off;
        }
      }
      mean[n * s.groups + g] = float(m);
      rstd[n * s.groups + g] = float(1 / std::sqrt(std::max(spread, 0.0) / all + eps));
      if (!(spread >= 0)) rstd[n * s.groups + g] = float(spread);  // NaN is not hidden
    }
}

// Of one pixel: y = keep(activation(slope x + start)) kept.
template <bool kSilu, bool kDrops, typename T>
void row_result(const T* __restrict x, const float* __restrict slope, const float* __restrict start,
                const uint8_t* __restrict bytes, int32_t limit, float kept, int64_t channels, T* __restrict y) {
  for (int64_t c = 0; c < channels; ++c) {
    const float result = activation<kSilu>(slope[c] * load(x[c]) + start[c]);
    store(y[c], keep<kDrops>(kDrops ? kept * result : result, bytes, c, limit));
  }
}

template <bool kSilu, bool kDrops, typename T>
void forward(const T* x, const float* added, const float* gain, const float* offset, const uint8_t* bytes, int drop,
             Shape s, float eps, T* y, float* mean, float* rstd, int threads) {
  const int64_t C = s.channels, K = s.blocks();
  statistics(x, added, s, eps, mean, rstd, threads);
  const float kept = 256.0f / float(256 - drop);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> slope(C), start(C);
#pragma omp for schedule(static)
    for (int64_t job = 0; job < s.samples * K; ++job) {
      const int64_t n = job / K, first = (job % K) * kRows, last = std::min(first + kRows, s.pixels);
      for (int64_t c = 0; c < C; ++c) {
        const int64_t g = n * s.groups + c / s.wide(), at = n * C + c;
        slope[c] = gain[at] * rstd[g];
        start[c] = offset[at] + slope[c] * ((added ? added[at] : 0.0f) - mean[g]);
      }
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = (n * s.pixels + row) * C;
        row_result<kSilu, kDrops>(x + at, slope.data(), start.data(), kDrops ? bytes + at : bytes, drop, kept, C, y + at);
      }
    }
  }
}

// Of one pixel: dv = keep(dy) activation'(slope x + start), and the normalised x, x_hat = scale x + shift: sum1 += dv,
// sum2 += dv x_hat, sum3 += x_hat. row_gradient finds dv, rounded to T, in the place of dx: another activation' would
// cost more.
template <bool kSilu, bool kDrops, typename T>
void add_sums(const T* __restrict x, const T* __restrict dy, const float* __restrict slope, const float* __restrict start,
              const float* __restrict scale, const float* __restrict shift, const uint8_t* __restrict bytes,
              int32_t limit, int64_t channels, float* __restrict sum1, float* __restrict sum2, float* __restrict sum3,
              T* __restrict dv) {
  for (int64_t c = 0; c < channels; ++c) {
    const float in = load(x[c]), out = keep<kDrops>(load(dy[c]), bytes, c, limit);
    const float d = out * derivative<kSilu>(slope[c] * in + start[c]), x_hat = scale[c] * in + shift[c];
    sum1[c] += d;
    sum2[c] += d * x_hat;
    sum3[c] += x_hat;
    store(dv[c], d);
  }
}

// Of one pixel: dx = steep dv - (a x + b), in place of dv.
template <typename T>
void row_gradient(const T* __restrict x, const float* __restrict steep, const float* __restrict a,
                  const float* __restrict b, int64_t channels, T* __restrict dx) {
  for (int64_t c = 0; c < channels; ++c) store(dx[c], steep[c] * load(dx[c]) - (a[c] * load(x[c]) + b[c]));
}

template <bool kSilu, bool kDrops, typename T>
void backward(const T* x, const float* added, const float* gain, const float* offset, const uint8_t* bytes, int drop,
              Shape s, const float* mean, const float* rstd, const T* dy, T* dx, float* dadded, float* dgain,
              float* doffset, int threads) {
  const int64_t C = s.channels, K = s.blocks();
  const float kept = kDrops ? 256.0f / float(256 - drop) : 1.0f;
  Sums plain(s.samples * K * C), along(plain), x_hats(plain);  // of dv, dv x_hat, and x_hat
  std::vector<float> share1(s.samples * s.groups), share2(s.samples * s.groups);

#pragma omp parallel num_threads(threads)
  {
    std::vector<float> room(7 * C);
    float *slope = room.data(), *start = slope + C, *scale = start + C, *shift = scale + C;
    float *steep = shift + C, *a = steep + C, *b = a + C;

    auto channels_of = [&](int64_t n) {  // normalised x = scale x + shift, v = slope x + start
      for (int64_t c = 0; c < C; ++c) {
        const int64_t g = n * s.groups + c / s.wide(), at = n * C + c;
        scale[c] = rstd[g];
        shift[c] = ((added ? added[at] : 0.0f) - mean[g]) * rstd[g];
        slope[c] = gain[at] * scale[c];
        start[c] = gain[at] * shift[c] + offset[at];
      }
    };

#pragma omp for schedule(static)
    for (int64_t job = 0; job < s.samples * K; ++job) {
      const int64_t n = job / K, first = (job % K) * kRows, last = std::min(first + kRows, s.pixels);
      channels_of(n);
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = (n * s.pixels + row) * C;
        add_sums<kSilu, kDrops>(x + at, dy + at, slope, start, scale, shift, kDrops ? bytes + at : bytes, drop, C,
                                plain.data() + job * C, along.data() + job * C, x_hats.data() + job * C, dx + at);
      }
    }

#pragma omp for schedule(static)
    for (int64_t n = 0; n < s.samples; ++n) {
      for (int64_t c = 0; c < C; ++c) {
        float sum1 = 0, sum2 = 0;
        for (int64_t k = 0; k < K; ++k) {
          sum1 += plain[(n * K + k) * C + c];
          sum2 += along[(n * K + k) * C + c];
        }
        doffset[n * C + c] = kept * sum1;
        dgain[n * C + c] = kept * sum2;
      }
      for (int64_t g = 0; g < s.groups; ++g) {
        float sum1 = 0, sum2 = 0;
        for (int64_t c = g * s.wide(); c < (g + 1) * s.wide(); ++c) {
          sum1 += gain[n * C + c] * doffset[n * C + c];
          sum2 += gain[n * C + c] * dgain[n * C + c];
        }
        const float count = float(s.pixels * s.wide());
        share1[n * s.groups + g] = sum1 / count;
        share2[n * s.groups + g] = sum2 / count;
      }
      for (int64_t c = 0; dadded && c < C; ++c) {  // the sum of dx over the pixels
        const int64_t g = n * s.groups + c / s.wide(), at = n * C + c;
        float sum3 = 0;
        for (int64_t k = 0; k < K; ++k) sum3 += x_hats[(n * K + k) * C + c];
        dadded[at] = rstd[g] * (gain[at] * doffset[at] - float(s.pixels) * share1[g] - sum3 * share2[g]);
      }
    }

#pragma omp for schedule(static)
    for (int64_t job = 0; job < s.samples * K; ++job) {
      const int64_t n = job / K, first = (job % K) * kRows, last = std::min(first + kRows, s.pixels);
      channels_of(n);
      for (int64_t c = 0; c < C; ++c) {  // dx = scale (gain kept dv - share1 - normalised x share2)
        const int64_t g = n * s.groups + c / s.wide();
        steep[c] = slope[c] * kept;
        a[c] = scale[c] * scale[c] * share2[g];
        b[c] = scale[c] * (share1[g] + shift[c] * share2[g]);
      }
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = (n * s.pixels + row) * C;
        row_gradient(x + at, steep, a, b, C, dx + at);
      }
    }
  }
}

// Calls way(silu, drops) with both as constants; there is no dropout without the SiLU.
template <typename Way>
void choose(bool silu, bool drops, Way way) {
  const std::true_type yes{};
  const std::false_type no{};
  if (!silu) return way(no, no);
  if (drops) return way(yes, yes);
  way(yes, no);
}

}  // namespace

#define NORM_SILU(T, NAME)                                                                                            \
  extern "C" void norm_silu_forward_##NAME(const T* x, const float* added, const float* gain, const float* offset,    \
                                           const uint8_t* bytes, int drop, int64_t n, int64_t hw, int64_t c,          \
                                           int64_t groups, int silu, float eps, T* y, float* mean, float* rstd,       \
                                           int threads) {                                                             \
    choose(silu, bytes, [&](auto with_silu, auto with_drops) {                                                        \
      forward<with_silu.value, with_drops.value>(x, added, gain, offset, bytes, drop, Shape{n, hw, c, groups}, eps,   \
                                                 y, mean, rstd, threads);                                             \
    });                                                                                                               \
  }                                                                                                                   \
  extern "C" void norm_silu_backward_##NAME(const T* x, const float* added, const float* gain, const float* offset,   \
                                            const uint8_t* bytes, int drop, int64_t n, int64_t hw, int64_t c,         \
                                            int64_t groups, int silu, const float* mean, const float* rstd,           \
                                            const T* dy, T* dx, float* dadded, float* dgain, float* doffset,          \
                                            int threads) {                                                            \
    choose(silu, bytes, [&](auto with_silu, auto with_drops) {                                                        \
      backward<with_silu.value, with_drops.value>(x, added, gain, offset, bytes, drop, Shape{n, hw, c, groups},       \
                                                  mean, rstd, dy, dx, dadded, dgain, doffset, threads);               \
    });                                                                                                               \
  }

NORM_SILU(float, float32)
NORM_SILU(bfloat16, bfloat16)
