// Message passing between neighbouring pixels on the CPU: the op whose definition is in fiducial/ops/message_passing.py.
//
// B pictures of H x W pixels, J neighbours of each. An iteration takes the logarithms of the one before and leaves its own;
// nothing in between is written to memory.
// Only libtorch's stable ABI is used, so that one binary serves every torch from 2.10 on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using torch::stable::Tensor;

// Vectors of GCC and clang, which become whatever registers the CPU has.
constexpr int64_t LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

inline Floats load(const float* from, int64_t count = LANES) {
  Floats found{};
  std::memcpy(&found, from, 4 * count);
  return found;
}

inline void store(float* to, const Floats& values, int64_t count = LANES) { std::memcpy(to, &values, 4 * count); }

// exp and log to about an ulp (Cephes). x is at most 0; below -87, where the result is no more than 1e-38, it stays
// there. NaN stays NaN.
inline Floats exp_of(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the low bits are x / ln 2, rounded
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<Floats>((std::bit_cast<Ints>(shifted) << 23) + 0x3f800000);
}

// x is in 0..1; NaN stays NaN.
inline Floats log_of(Floats x) {
  const Ints bits = std::bit_cast<Ints>(x) - 0x3f3504f3; // so that the mantissa is in sqrt(1/2)..sqrt(2)
  const Floats n = __builtin_convertvector(bits >> 23, Floats);
  const Floats f = std::bit_cast<Floats>((bits & 0x007fffff) + 0x3f3504f3) - 1.0f, z = f * f;
  Floats p = f * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  p = (p * f * z - n * 2.12194440e-4f) - 0.5f * z;
  return ((f + p) + n * 0.693359375f) + (x - x);
}

// Logarithms of both labels' probabilities, with a border of zeros: neighbours that are not there say nothing.
struct Logs {
  std::vector<float> background, foreground;

  explicit Logs(int64_t size) : background(size, 0.0f), foreground(size, 0.0f) {}
};

// One picture. Outside the box x is low from the first to the last, so each row is done from its first to its last pixel
// of the box.
struct Passing {
  const float* affinity; // (J, …, H, W): the planes of the neighbours are `plane` apart
  const float* box;      // (H, W)
  float* x;              // (H, W)
  int64_t J, plane, H, W, radius;
  float low, high;
  std::vector<int64_t> neighbours;                 // how far their logarithms are from the pixel's
  std::vector<std::pair<int64_t, int64_t>> extent; // of the box in each row

  int64_t line() const { return W + 2 * radius; }
  int64_t size() const { return (H + 2 * radius) * line(); }
  int64_t start(int64_t y) const { return (y + radius) * line() + radius; } // of a row of the logarithms

  void prepare() {
    for (int64_t y = -radius; y <= radius; ++y)
      for (int64_t c = -radius; c <= radius; ++c)
        if (y || c) neighbours.push_back(y * line() + c);
    const auto inside = [](float value) { return value != 0; };
    extent.resize(H);
    for (int64_t y = 0; y < H; ++y) {
      const float *begin = box + y * W, *end = begin + W, *first = std::find_if(begin, end, inside);
      while (end != first && !inside(end[-1])) --end;
      extent[y] = {first - begin, end - begin};
    }
  }

  // Calls f(column, number of pixels) for parts of a row from `first` to `last`; the last two may overlap.
  template <typename F>
  static void for_parts(int64_t first, int64_t last, const F& f) {
    for (int64_t c = first; c + LANES <= last; c += LANES) f(c, std::integral_constant<int64_t, LANES>());
    if ((last - first) % LANES == 0) return;
    if (last - first > LANES)
      f(last - LANES, std::integral_constant<int64_t, LANES>());
    else
      f(first, last - first);
  }

  void take_logs(Logs& logs) const {
    for (int64_t y = 0; y < H; ++y)
      for_parts(0, W, [&](int64_t c, auto count) { put_logs(logs, start(y) + c, load(x + y * W + c, count), count); });
  }

  static void put_logs(Logs& logs, int64_t place, Floats value, int64_t count) {
    store(&logs.background[place], log_of(1.0f - value), count);
    store(&logs.foreground[place], log_of(value), count);
  }

  void iterate(const Logs& old, Logs& fresh) const {
    for (int64_t y = 0; y < H; ++y)
      for_parts(extent[y].first, extent[y].second, [&](int64_t c, auto count) { pixels(y, c, count, old, fresh); });
  }

  template <typename Count>
  void pixels(int64_t y, int64_t c, Count count, const Logs& old, Logs& fresh) const {
    const int64_t here = start(y) + c, in_plane = y * W + c;
    const float *b = &old.background[here], *f = &old.foreground[here];
    Floats background = load(b, count), foreground = load(f, count); // a pixel is its own neighbour, with affinity 1
    for (int64_t j = 0; j < J; ++j) {
      const Floats weight = load(affinity + j * plane + in_plane, count);
      background += weight * load(b + neighbours[j], count);
      foreground += weight * load(f + neighbours[j], count);
    }
    const Floats object = exp_of(foreground) * load(box + in_plane, count);
    Floats value = object / (exp_of(background) + object + 1e-6f);
    value = value < low ? Floats{} + low : value;
    value = value > high ? Floats{} + high : value;
    store(x + in_plane, value, count);
    put_logs(fresh, here, value, count);
  }
};

// A picture is one thread's from the first iteration to the last: its planes stay in the core's cache, and no thread
// waits for another.
void message_passing(Tensor affinity, Tensor box, Tensor x, int64_t num_iter, int64_t radius, double low, double high) {
  const int64_t B = x.size(0), H = x.size(1), W = x.size(2);
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      Passing passing{static_cast<const float*>(affinity.data_ptr()) + b * H * W,
                      static_cast<const float*>(box.data_ptr()) + b * H * W,
                      static_cast<float*>(x.data_ptr()) + b * H * W,
                      affinity.size(0), B * H * W, H, W, radius,
                      static_cast<float>(low), static_cast<float>(high), {}, {}};
      passing.prepare();
      Logs old(passing.size());
      passing.take_logs(old);
      Logs fresh = old;
      for (int64_t i = 0; i < num_iter; ++i) {
        passing.iterate(old, fresh);
        std::swap(old, fresh);
      }
    }
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(fiducial, CPU, library) {
  library.impl("message_passing_into", TORCH_BOX(&message_passing));
}
