// y = drop(silu(gain * normalised(x + added) + offset)) and its gradient, on images stored (N, H W, C): channels last.
//
// normalised: over each group of channels of a sample, in float32. gain, offset, added: (N, C), float32. The rows (pixels)
// of a sample are cut into blocks whose sums are combined in one order, so results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
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
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// exp as 2^n exp(r) with |r| <= ln 2 / 2 and a polynomial of degree 6: relative error 2e-7, and loops over it vectorise.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 87.0f ? 87.0f : x;
  const float shift = 12582912.0f;  // 1.5 2^23: adding it rounds to an integer
  float n = (x * 1.44269504f + shift) - shift;
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float sigmoid(float v) { return 1.0f / (1.0f + exponential(-v)); }

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

template <typename T>
void forward(const T* x, const float* added, const float* gain, const float* offset, const uint8_t* bytes, int drop,
             Shape s, float eps, T* y, float* mean, float* rstd, int threads) {
  const int64_t C = s.channels, K = s.blocks();
  statistics(x, added, s, eps, mean, rstd, threads);
  const float kept = 256.0f / float(256 - drop);
  const int32_t limit = drop;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> slopes(C), starts(C);
    float* __restrict slope = slopes.data();
    float* __restrict start = starts.data();
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
        const T* __restrict in = x + at;
        T* __restrict out = y + at;
        if (bytes) {
          const uint8_t* __restrict byte = bytes + at;
          for (int64_t c = 0; c < C; ++c) {
            const float v = load(in[c]) * slope[c] + start[c];
            store(out[c], v * sigmoid(v) * (int32_t(byte[c]) >= limit ? kept : 0.0f));
          }
        } else {
          for (int64_t c = 0; c < C; ++c) {
            const float v = load(in[c]) * slope[c] + start[c];
            store(out[c], v * sigmoid(v));
          }
        }
      }
    }
  }
}

// Of one pixel: xh the normalised x, and dv = dy drop'(.) silu'(v) with v = gain xh + offset.
template <typename T>
inline void gradient_of_row(const T* __restrict x, const T* __restrict dy, const uint8_t* __restrict bytes,
                            const float* __restrict scale, const float* __restrict shift, const float* __restrict gain,
                            const float* __restrict offset, int64_t channels, int32_t limit, float kept,
                            float* __restrict xh, float* __restrict dv) {
  if (bytes) {
    for (int64_t c = 0; c < channels; ++c) dv[c] = int32_t(bytes[c]) >= limit ? kept : 0.0f;
  } else {
    for (int64_t c = 0; c < channels; ++c) dv[c] = 1.0f;
  }
  for (int64_t c = 0; c < channels; ++c) {
    xh[c] = load(x[c]) * scale[c] + shift[c];
    const float v = gain[c] * xh[c] + offset[c], sig = sigmoid(v);
    dv[c] *= load(dy[c]) * sig * (1.0f + v * (1.0f - sig));
  }
}

template <typename T>
void backward(const T* x, const float* added, const float* gain, const float* offset, const uint8_t* bytes, int drop,
              Shape s, const float* mean, const float* rstd, const T* dy, T* dx, float* dadded, float* dgain,
              float* doffset, int threads) {
  const int64_t C = s.channels, K = s.blocks();
  const float kept = 256.0f / float(256 - drop);
  const int32_t limit = drop;
  Sums plain(s.samples * K * C), along(s.samples * K * C);  // of dv, and of dv times the normalised x
  std::vector<float> share1(s.samples * s.groups), share2(s.samples * s.groups);

#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scales(C), shifts(C), gradient(C), xhat(C);
    float* __restrict scale = scales.data();  // normalised x = scale x + shift
    float* __restrict shift = shifts.data();
    float* __restrict dv = gradient.data();
    float* __restrict xh = xhat.data();

    auto channels_of = [&](int64_t n) {
      for (int64_t c = 0; c < C; ++c) {
        const int64_t g = n * s.groups + c / s.wide();
        scale[c] = rstd[g];
        shift[c] = ((added ? added[n * C + c] : 0.0f) - mean[g]) * rstd[g];
      }
    };
    auto row_gradient = [&](int64_t n, int64_t row) {
      const int64_t at = (n * s.pixels + row) * C;
      gradient_of_row(x + at, dy + at, bytes ? bytes + at : nullptr, scale, shift, gain + n * C, offset + n * C, C, limit,
                      kept, xh, dv);
    };

#pragma omp for schedule(static)
    for (int64_t job = 0; job < s.samples * K; ++job) {
      const int64_t n = job / K, first = (job % K) * kRows, last = std::min(first + kRows, s.pixels);
      float* __restrict sum1 = plain.data() + job * C;
      float* __restrict sum2 = along.data() + job * C;
      channels_of(n);
      for (int64_t row = first; row < last; ++row) {
        row_gradient(n, row);
        for (int64_t c = 0; c < C; ++c) {
          sum1[c] += dv[c];
          sum2[c] += dv[c] * xh[c];
        }
      }
    }

#pragma omp for schedule(static)
    for (int64_t n = 0; n < s.samples; ++n) {
      for (int64_t c = 0; c < C; ++c) {
        float sum1 = 0, sum2 = 0;
        for (int64_t b = 0; b < K; ++b) {
          sum1 += plain[(n * K + b) * C + c];
          sum2 += along[(n * K + b) * C + c];
        }
        doffset[n * C + c] = sum1;
        dgain[n * C + c] = sum2;
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
    }

    std::vector<float> firsts(C), seconds(C);
    float* __restrict one = firsts.data();
    float* __restrict two = seconds.data();
#pragma omp for schedule(static)
    for (int64_t job = 0; job < s.samples * K; ++job) {
      const int64_t n = job / K, first = (job % K) * kRows, last = std::min(first + kRows, s.pixels);
      float* __restrict sum = plain.data() + job * C;
      channels_of(n);
      for (int64_t c = 0; c < C; ++c) {
        one[c] = share1[n * s.groups + c / s.wide()];
        two[c] = share2[n * s.groups + c / s.wide()];
        sum[c] = 0;
      }
      for (int64_t row = first; row < last; ++row) {
        row_gradient(n, row);
        T* __restrict out = dx + (n * s.pixels + row) * C;
        const float* __restrict a = gain + n * C;
        for (int64_t c = 0; c < C; ++c) {
          const float d = scale[c] * (a[c] * dv[c] - one[c] - xh[c] * two[c]);
          sum[c] += d;
          store(out[c], d);
        }
      }
    }

    if (dadded) {
#pragma omp for schedule(static)
      for (int64_t n = 0; n < s.samples; ++n)
        for (int64_t b = 0; b < K; ++b)
          for (int64_t c = 0; c < C; ++c) dadded[n * C + c] += plain[(n * K + b) * C + c];
    }
  }
}

}  // namespace

#define NORM_SILU(T, NAME)                                                                                            \
  extern "C" void norm_silu_forward_##NAME(const T* x, const float* added, const float* gain, const float* offset,    \
                                           const uint8_t* bytes, int drop, int64_t n, int64_t hw, int64_t c,          \
                                           int64_t groups, float eps, T* y, float* mean, float* rstd, int threads) {  \
    forward(x, added, gain, offset, bytes, drop, Shape{n, hw, c, groups}, eps, y, mean, rstd, threads);               \
  }                                                                                                                   \
  extern "C" void norm_silu_backward_##NAME(const T* x, const float* added, const float* gain, const float* offset,   \
                                            const uint8_t* bytes, int drop, int64_t n, int64_t hw, int64_t c,         \
                                            int64_t groups, const float* mean, const float* rstd, const T* dy, T* dx, \
                                            float* dadded, float* dgain, float* doffset, int threads) {               \
    backward(x, added, gain, offset, bytes, drop, Shape{n, hw, c, groups}, mean, rstd, dy, dx, dadded, dgain,         \
             doffset, threads);                                                                                       \
  }

NORM_SILU(float, float32)
NORM_SILU(bfloat16, bfloat16)
