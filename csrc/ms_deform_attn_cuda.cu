// Multi-scale deformable attention on NVIDIA GPUs: kernels for the op whose schema is in fiducial/ops/op.py.
//
// B batch, S pixels of all levels, M heads, D channels of a head, Q queries, L levels, P points of a level.
// A group of threads makes one output row (one b, q, m), each thread VEC neighbouring channels of it with one memory
// access a pixel; a warp holds several groups. Half precision is read as it is and summed in float32.
// Only libtorch's stable ABI and the CUDA runtime are used, so that one binary serves every torch from 2.10 on.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int THREADS = 256;

// What T is computed in, and the type of locations and weights beside it.
template <typename T>
using Exact = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct Inputs {
  const T* value;           // (B, S, M, D)
  const int64_t* sizes;     // (L, 2): height, width
  const int64_t* start;     // (L)
  const Exact<T>* location; // (B, Q, M, L, P, 2): x, y
  const Exact<T>* weight;   // (B, Q, M, L, P)
  int64_t outputs, S, Q;    // outputs = B * Q * M
  int M, D, L, P;
  int lanes; // threads of a group: a power of two up to 32
};

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T>
__device__ inline T narrow(Exact<T> v) {
  if constexpr (std::is_same_v<T, __half>) return __float2half(v);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16(v);
  else return v;
}

// VEC neighbouring numbers, moved in one access.
template <typename T, int VEC>
struct alignas(sizeof(T) * VEC) Pack {
  T at[VEC];
};

template <typename T, int VEC>
__device__ inline Pack<T, VEC> load(const T* from) {
  return *reinterpret_cast<const Pack<T, VEC>*>(from);
}

// One level, with distances in numbers of value.
struct Level {
  int height, width;         // in pixels; no pixels if the level does not lie within the value
  int64_t first, line, step; // from a head's first number to the level's; to the pixel below; to the pixel to the right

  template <typename T>
  __device__ Level(const Inputs<T>& in, int index, int64_t step_) : step(step_) {
    const int64_t h = in.sizes[2 * index], w = in.sizes[2 * index + 1], start = in.start[index];
    const bool fits = h >= 0 && h <= in.S && w >= 0 && w <= in.S && start >= 0 && start + h * w <= in.S;
    height = fits ? static_cast<int>(h) : 0;
    width = fits ? static_cast<int>(w) : 0;
    first = start * step;
    line = width * step;
  }
};

// The four pixels around a point: top left, top right, bottom left, bottom right.
template <typename E>
struct Corners {
  int64_t place;  // of the first pixel, even if that is outside
  bool inside[4]; // none is for points that reach no pixel, and for NaN
  E right, lower; // how far the point lies towards the right and lower pixels, 0..1

  // There are no branches, so that the reads of several points can be under way together.
  __device__ Corners(Pack<E, 2> xy, const Level& level) {
    E x = xy.at[0] * static_cast<E>(level.width) - static_cast<E>(0.5);
    E y = xy.at[1] * static_cast<E>(level.height) - static_cast<E>(0.5);
    const bool found =
        x > -1 && x < static_cast<E>(level.width) && y > -1 && y < static_cast<E>(level.height);
    x = found ? x : 0;
    y = found ? y : 0;
    const E left = floor(x), top = floor(y);
    right = x - left;
    lower = y - top;
    const int column = static_cast<int>(left), line = static_cast<int>(top);
    const bool has_left = column >= 0 && found, has_right = column + 1 < level.width && found;
    const bool has_top = line >= 0, has_bottom = line + 1 < level.height;
    inside[0] = has_top && has_left, inside[1] = has_top && has_right;
    inside[2] = has_bottom && has_left, inside[3] = has_bottom && has_right;
    place = level.first + line * level.line + column * level.step;
  }

  __device__ int64_t pixel(int corner, const Level& level) const {
    return place + (corner & 1 ? level.step : 0) + (corner & 2 ? level.line : 0);
  }

  __device__ E weight(int corner) const {
    return (corner & 1 ? right : 1 - right) * (corner & 2 ? lower : 1 - lower);
  }

  // VEC channels of the four pixels, zeros for those that are not inside.
  template <typename T, int VEC>
  __device__ void read(const T* from, const Level& level, Pack<T, VEC>* pixels) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) pixels[k] = inside[k] ? load<T, VEC>(from + pixel(k, level)) : Pack<T, VEC>{};
  }
};

// WIDTH is D where it is known while compiling, or 0.
template <typename T, int WIDTH, int VEC>
__global__ void __launch_bounds__(THREADS) forward_kernel(Inputs<T> in, T* __restrict__ out) {
  using E = Exact<T>;
  const int D = WIDTH ? WIDTH : in.D;
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) / in.lanes; // (b * Q + q) * M + m
  if (n >= in.outputs) return;
  const int64_t stride = static_cast<int64_t>(in.M) * D;
  const T* head = in.value + n / (in.Q * in.M) * in.S * stride + n % in.M * D;
  const int points = in.L * in.P;

  for (int d = threadIdx.x % in.lanes * VEC; d < D; d += in.lanes * VEC) {
    E sum[VEC] = {};
    for (int index = 0, i = 0; index < in.L; ++index) {
      const Level level(in, index, stride);
#pragma unroll 4
      for (int point = 0; point < in.P; ++point, ++i) {
        const Corners<E> at(load<E, 2>(in.location + (n * points + i) * 2), level);
        const E weight = in.weight[n * points + i];
        Pack<T, VEC> pixels[4];
        at.read(head + d, level, pixels);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const E share = weight * at.weight(k);
#pragma unroll
          for (int v = 0; v < VEC; ++v) sum[v] += share * widen(pixels[k].at[v]);
        }
      }
    }
    Pack<T, VEC> row;
#pragma unroll
    for (int v = 0; v < VEC; ++v) row.at[v] = narrow<T>(sum[v]);
    *reinterpret_cast<Pack<T, VEC>*>(out + n * D + d) = row;
  }
}

// Adds VEC neighbouring numbers, four floats at a time where the GPU can.
template <typename E, int VEC>
__device__ inline void add(E* to, const E* numbers) {
#if __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<E, float> && VEC % 4 == 0) {
#pragma unroll
    for (int v = 0; v < VEC; v += 4)
      atomicAdd(reinterpret_cast<float4*>(to + v), make_float4(numbers[v], numbers[v + 1], numbers[v + 2], numbers[v + 3]));
    return;
  }
#endif
#pragma unroll
  for (int v = 0; v < VEC; ++v) atomicAdd(to + v, numbers[v]);
}

// d_value may be null: then only the other two gradients are made, which take no atomics.
template <typename T, int WIDTH, int VEC>
__global__ void __launch_bounds__(THREADS) backward_kernel(
    Inputs<T> in, const T* __restrict__ grad, Exact<T>* __restrict__ d_value, Exact<T>* __restrict__ d_location,
    Exact<T>* __restrict__ d_weight) {
  using E = Exact<T>;
  const int D = WIDTH ? WIDTH : in.D;
  const int lane = threadIdx.x % in.lanes;
  const int64_t n = (static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x) / in.lanes;
  const bool active = n < in.outputs; // every thread stays until the end: groups exchange sums within a warp
  const int64_t stride = static_cast<int64_t>(in.M) * D;
  const int64_t head = active ? n / (in.Q * in.M) * in.S * stride + n % in.M * D : 0;
  const int points = in.L * in.P;

  for (int index = 0, i = 0; index < in.L; ++index) {
    const Level level(in, index, stride);
    for (int point = 0; point < in.P; ++point, ++i) {
      const Pack<E, 2> xy = active ? load<E, 2>(in.location + (n * points + i) * 2) : Pack<E, 2>{};
      const E weight = active ? in.weight[n * points + i] : 0;
      const Corners<E> at(xy, level);
      E dot[4] = {}; // of the output's gradient with each pixel
      for (int d = lane * VEC; d < D && active; d += in.lanes * VEC) {
        const Pack<T, VEC> g = load<T, VEC>(grad + n * D + d);
        Pack<T, VEC> pixels[4];
        at.read(in.value + head + d, level, pixels);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const E share = weight * at.weight(k);
          E part[VEC];
#pragma unroll
          for (int v = 0; v < VEC; ++v) {
            dot[k] += widen(g.at[v]) * widen(pixels[k].at[v]);
            part[v] = share * widen(g.at[v]);
          }
          if (d_value && at.inside[k]) add<E, VEC>(d_value + head + at.pixel(k, level) + d, part);
        }
      }
      E d_x = (dot[1] - dot[0]) * (1 - at.lower) + (dot[3] - dot[2]) * at.lower;
      E d_y = (dot[2] - dot[0]) * (1 - at.right) + (dot[3] - dot[1]) * at.right;
      E d_w = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) d_w += dot[k] * at.weight(k);
      for (int other = in.lanes / 2; other > 0; other /= 2) {
        d_x += __shfl_xor_sync(0xffffffff, d_x, other);
        d_y += __shfl_xor_sync(0xffffffff, d_y, other);
        d_w += __shfl_xor_sync(0xffffffff, d_w, other);
      }
      if (active && lane == 0) {
        d_weight[n * points + i] = d_w;
        d_location[(n * points + i) * 2] = d_x * weight * static_cast<E>(level.width);
        d_location[(n * points + i) * 2 + 1] = d_y * weight * static_cast<E>(level.height);
      }
    }
  }
}

// Calls f(WIDTH, VEC) as constants: 16 bytes a thread where D allows it, and a kernel of its own for the usual widths.
template <typename T, typename F>
void with_width(int D, const F& f) {
  constexpr int WIDE = 16 / sizeof(T);
  using Wide = std::integral_constant<int, WIDE>;
  switch (D) {
    case 16: return f(std::integral_constant<int, 16>(), Wide());
    case 32: return f(std::integral_constant<int, 32>(), Wide());
    case 64: return f(std::integral_constant<int, 64>(), Wide());
    case 128: return f(std::integral_constant<int, 128>(), Wide());
  }
  if (D % WIDE == 0) f(std::integral_constant<int, 0>(), Wide());
  else f(std::integral_constant<int, 0>(), std::integral_constant<int, 1>());
}

template <typename T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
Inputs<T> describe(const Tensor& value, const Tensor& sizes, const Tensor& start, const Tensor& loc, const Tensor& weight) {
  return {read<T>(value), read<int64_t>(sizes), read<int64_t>(start), read<Exact<T>>(loc), read<Exact<T>>(weight),
          value.size(0) * loc.size(1) * value.size(2), value.size(1), loc.size(1), static_cast<int>(value.size(2)),
          static_cast<int>(value.size(3)), static_cast<int>(loc.size(3)), static_cast<int>(loc.size(4)), 1};
}

// Chooses the group's size, and calls launch(inputs, blocks, WIDTH, VEC).
template <typename T, typename F>
void configure(Inputs<T> in, const F& launch) {
  with_width<T>(in.D, [&](auto width, auto vec) {
    while (in.lanes < 32 && in.lanes * vec() < in.D) in.lanes *= 2;
    const int64_t blocks = (in.outputs * in.lanes + THREADS - 1) / THREADS;
    STD_TORCH_CHECK(blocks < (int64_t{1} << 31) && in.S < (int64_t{1} << 31), "ms_deform_attn: too many outputs or pixels");
    launch(in, static_cast<unsigned>(blocks), width, vec);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

// Calls f(a number of value's type).
template <typename F>
void with_type(const Tensor& value, const F& f) {
  switch (value.scalar_type()) {
    case ScalarType::Double: return f(double());
    case ScalarType::Float: return f(float());
    case ScalarType::Half: return f(__half());
    case ScalarType::BFloat16: return f(__nv_bfloat16());
    default: STD_TORCH_CHECK(false, "ms_deform_attn: value must be float32, float64, float16 or bfloat16");
  }
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void forward(Tensor value, Tensor sizes, Tensor start, Tensor loc, Tensor weight, Tensor out) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const cudaStream_t stream = current_stream(value);
  with_type(value, [&](auto zero) {
    using T = decltype(zero);
    configure(describe<T>(value, sizes, start, loc, weight), [&](auto in, unsigned blocks, auto width, auto vec) {
      forward_kernel<T, width(), vec()><<<blocks, THREADS, 0, stream>>>(in, static_cast<T*>(out.data_ptr()));
    });
  });
}

void backward(Tensor grad, Tensor value, Tensor sizes, Tensor start, Tensor loc, Tensor weight,
              std::optional<Tensor> d_value, Tensor d_loc, Tensor d_weight) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const cudaStream_t stream = current_stream(value);
  with_type(value, [&](auto zero) {
    using T = decltype(zero);
    using E = Exact<T>;
    E* sums = d_value ? static_cast<E*>(d_value->data_ptr()) : nullptr;
    configure(describe<T>(value, sizes, start, loc, weight), [&](auto in, unsigned blocks, auto width, auto vec) {
      backward_kernel<T, width(), vec()><<<blocks, THREADS, 0, stream>>>(
          in, read<T>(grad), sums, static_cast<E*>(d_loc.data_ptr()), static_cast<E*>(d_weight.data_ptr()));
    });
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(fiducial, CUDA, library) {
  library.impl("ms_deform_attn_into", TORCH_BOX(&forward));
  library.impl("ms_deform_attn_backward_into", TORCH_BOX(&backward));
}
