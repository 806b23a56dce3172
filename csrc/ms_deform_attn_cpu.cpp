// Multi-scale deformable attention on the CPU: kernels for the op whose schema is in fiducial/ops/op.py.
//
// B batch, S pixels of all levels, M heads, D channels of a head, Q queries, L levels, P points of a level.
// Only libtorch's stable ABI is used, so that one binary serves every torch from 2.10 on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

namespace {

using torch::stable::Tensor;

template <typename T>
struct Inputs {
  const T* value;       // (B, S, M, D)
  const int64_t* sizes; // (L, 2): height, width
  const int64_t* start; // (L)
  const T* location;    // (B, Q, M, L, P, 2): x, y
  const T* attention;   // (B, Q, M, L, P)
  int64_t B, S, M, D, Q, L, P;

  Inputs(const Tensor& v, const Tensor& sizes_, const Tensor& start_, const Tensor& loc, const Tensor& attn)
      : value(static_cast<const T*>(v.data_ptr())),
        sizes(static_cast<const int64_t*>(sizes_.data_ptr())),
        start(static_cast<const int64_t*>(start_.data_ptr())),
        location(static_cast<const T*>(loc.data_ptr())),
        attention(static_cast<const T*>(attn.data_ptr())),
        B(v.size(0)), S(v.size(1)), M(v.size(2)), D(v.size(3)), Q(loc.size(1)), L(loc.size(3)), P(loc.size(4)) {}
};

// The four pixels around a point: top left, top right, bottom left, bottom right.
template <typename T>
struct Corners {
  int64_t pixel[4]; // always within the level
  T inside[4];      // 1, or 0 where the corner is padding
  T right, lower;   // how far the point lies towards the right and lower pixels, 0..1

  // False for points that reach no pixel of the level, for NaN, and for levels without pixels.
  bool find(T x, T y, int64_t height, int64_t width, int64_t start) {
    x = x * static_cast<T>(width) - static_cast<T>(0.5);
    y = y * static_cast<T>(height) - static_cast<T>(0.5);
    if (!(x > -1 && x < static_cast<T>(width) && y > -1 && y < static_cast<T>(height))) return false;
    if (height < 1 || width < 1) return false;
    const T left = std::floor(x), top = std::floor(y);
    right = x - left;
    lower = y - top;
    const int64_t x0 = static_cast<int64_t>(left), y0 = static_cast<int64_t>(top);
    const int64_t first = std::max<int64_t>(x0, 0), last = std::min(x0 + 1, width - 1);
    const int64_t upper_line = start + std::max<int64_t>(y0, 0) * width;
    const int64_t lower_line = start + std::min(y0 + 1, height - 1) * width;
    const T has_left = x0 >= 0, has_right = x0 + 1 < width, has_top = y0 >= 0, has_bottom = y0 + 1 < height;
    pixel[0] = upper_line + first, inside[0] = has_top * has_left;
    pixel[1] = upper_line + last, inside[1] = has_top * has_right;
    pixel[2] = lower_line + first, inside[2] = has_bottom * has_left;
    pixel[3] = lower_line + last, inside[3] = has_bottom * has_right;
    return true;
  }

  void weights(T scale, T* weight) const {
    weight[0] = scale * inside[0] * (1 - lower) * (1 - right);
    weight[1] = scale * inside[1] * (1 - lower) * right;
    weight[2] = scale * inside[2] * lower * (1 - right);
    weight[3] = scale * inside[3] * lower * right;
  }
};

// Calls f(integral constant D) for the widths that are worth a kernel of their own, and f(0) for the others.
template <typename F>
void with_width(int64_t D, const F& f) {
  switch (D) {
    case 16: return f(std::integral_constant<int, 16>());
    case 32: return f(std::integral_constant<int, 32>());
    case 64: return f(std::integral_constant<int, 64>());
    case 128: return f(std::integral_constant<int, 128>());
    default: return f(std::integral_constant<int, 0>());
  }
}

template <typename T, int WIDTH>
void forward_range(const Inputs<T>& in, T* out, int64_t begin, int64_t end) {
  const int64_t D = WIDTH ? WIDTH : in.D, points = in.L * in.P;
  std::vector<T> buffer(D);
  for (int64_t n = begin; n < end; ++n) { // n = (b * Q + q) * M + m
    const T* head = in.value + (n / (in.Q * in.M) * in.S * in.M + n % in.M) * D;
    const T* location = in.location + n * points * 2;
    const T* attention = in.attention + n * points;
    T fixed[WIDTH ? WIDTH : 1];
    T* __restrict__ sum = WIDTH ? fixed : buffer.data();
    for (int64_t d = 0; d < D; ++d) sum[d] = 0;
    for (int64_t i = 0; i < points; ++i) {
      const int64_t level = i / in.P;
      Corners<T> at;
      if (!at.find(location[2 * i], location[2 * i + 1], in.sizes[2 * level], in.sizes[2 * level + 1], in.start[level]))
        continue;
      T w[4];
      at.weights(attention[i], w);
      const T *a = head + at.pixel[0] * in.M * D, *b = head + at.pixel[1] * in.M * D;
      const T *c = head + at.pixel[2] * in.M * D, *e = head + at.pixel[3] * in.M * D;
#pragma omp simd
      for (int64_t d = 0; d < D; ++d) sum[d] += w[0] * a[d] + w[1] * b[d] + w[2] * c[d] + w[3] * e[d];
    }
    for (int64_t d = 0; d < D; ++d) out[n * D + d] = sum[d];
  }
}

// One head of one image: nobody else writes its part of d_value, so the sums are exact and always in the same order.
// The head is packed first: its rows are M * D apart in memory, which the caches take badly.
template <typename T, int WIDTH>
void backward_head(const Inputs<T>& in, const T* grad, T* d_value, T* d_location, T* d_attention, int64_t head) {
  const int64_t D = WIDTH ? WIDTH : in.D, points = in.L * in.P, batch = head / in.M, m = head % in.M;
  const int64_t origin = (batch * in.S * in.M + m) * D;
  std::vector<T> packed(in.S * D), sums(in.S * D, 0);
  for (int64_t s = 0; s < in.S; ++s) std::copy_n(in.value + origin + s * in.M * D, D, &packed[s * D]);

  for (int64_t q = 0; q < in.Q; ++q) {
    const int64_t n = (batch * in.Q + q) * in.M + m;
    const T* __restrict__ g = grad + n * D;
    for (int64_t i = n * points; i < (n + 1) * points; ++i) {
      const int64_t level = i % points / in.P, height = in.sizes[2 * level], width = in.sizes[2 * level + 1];
      d_location[2 * i] = d_location[2 * i + 1] = d_attention[i] = 0;
      Corners<T> at;
      if (!at.find(in.location[2 * i], in.location[2 * i + 1], height, width, in.start[level])) continue;
      T w[4], dot[4];
      at.weights(in.attention[i], w);
      for (int k = 0; k < 4; ++k) {
        const T* __restrict__ row = &packed[at.pixel[k] * D];
        T* __restrict__ sum = &sums[at.pixel[k] * D];
        const T weight = w[k];
        T product = 0;
#pragma omp simd reduction(+ : product)
        for (int64_t d = 0; d < D; ++d) {
          product += g[d] * row[d];
          sum[d] += weight * g[d];
        }
        dot[k] = product * at.inside[k];
      }
      const T upper = dot[0] + (dot[1] - dot[0]) * at.right, lower = dot[2] + (dot[3] - dot[2]) * at.right;
      const T along_x = (dot[1] - dot[0]) * (1 - at.lower) + (dot[3] - dot[2]) * at.lower;
      d_attention[i] = upper + (lower - upper) * at.lower;
      d_location[2 * i] = along_x * in.attention[i] * static_cast<T>(width);
      d_location[2 * i + 1] = (lower - upper) * in.attention[i] * static_cast<T>(height);
    }
  }
  for (int64_t s = 0; s < in.S; ++s) std::copy_n(&sums[s * D], D, d_value + origin + s * in.M * D);
}

template <typename T>
void run_forward(const Inputs<T>& in, T* out) {
  const int64_t outputs = in.B * in.Q * in.M;
  const int64_t grain = std::max<int64_t>(1, 65536 / (in.L * in.P * in.D)); // enough work to be worth a thread
  with_width(in.D, [&](auto width) {
    torch::stable::parallel_for(0, outputs, grain, [&](int64_t begin, int64_t end) {
      forward_range<T, width()>(in, out, begin, end);
    });
  });
}

template <typename T>
void run_backward(const Inputs<T>& in, const T* grad, T* d_value, T* d_location, T* d_attention) {
  with_width(in.D, [&](auto width) {
    torch::stable::parallel_for(0, in.B * in.M, 1, [&](int64_t begin, int64_t end) {
      for (int64_t head = begin; head < end; ++head)
        backward_head<T, width()>(in, grad, d_value, d_location, d_attention, head);
    });
  });
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

void forward(Tensor value, Tensor sizes, Tensor start, Tensor loc, Tensor attn, Tensor out) {
  if (value.element_size() == sizeof(double))
    run_forward(Inputs<double>(value, sizes, start, loc, attn), data<double>(out));
  else
    run_forward(Inputs<float>(value, sizes, start, loc, attn), data<float>(out));
}

void backward(Tensor grad, Tensor value, Tensor sizes, Tensor start, Tensor loc, Tensor attn,
              std::optional<Tensor> d_value, Tensor d_loc, Tensor d_attn) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    run_backward(Inputs<T>(value, sizes, start, loc, attn), data<T>(grad), data<T>(d_value.value()),
                 data<T>(d_loc), data<T>(d_attn));
  };
  value.element_size() == sizeof(double) ? run(double()) : run(float());
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(fiducial, CPU, library) {
  library.impl("ms_deform_attn_into", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward_into", TORCH_BOX(&backward));
}
