// Enough of CUDA to run simple kernels on a CPU, one block after another: its threads are fibers that take turns, and
// every exchange within a warp waits for the whole block.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;
inline float __half2float(__half v) { return v; }
inline float __bfloat162float(__nv_bfloat16 v) { return v; }
inline __half __float2half(float v) { return v; }
inline __nv_bfloat16 __float2bfloat16(float v) { return v; }

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 16);
  double exchanged = 0;
  bool done = false;
};
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline const std::function<void()>* body;

inline void wait_for_block() { swapcontext(&fibers[threadIdx.x].context, &scheduler); }

inline void run_fiber() {
  (*body)();
  fibers[threadIdx.x].done = true;
  wait_for_block();
}

inline void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  body = &kernel;
  fibers.resize(threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (Fiber& fiber : fibers) {
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack = {.ss_sp = fiber.stack.data(), .ss_flags = 0, .ss_size = fiber.stack.size()};
      makecontext(&fiber.context, run_fiber, 0);
    }
    for (bool running = true; running;) {
      running = false;
      for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
        if (!fibers[threadIdx.x].done) {
          running = true;
          swapcontext(&scheduler, &fibers[threadIdx.x].context);
        }
    }
  }
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int other) {
  fibers[threadIdx.x].exchanged = value;
  wait_for_block();
  const T received = static_cast<T>(fibers[threadIdx.x ^ other].exchanged);
  wait_for_block();
  return received;
}

template <typename T>
void atomicAdd(T* to, T value) {
  *to += value;
}
