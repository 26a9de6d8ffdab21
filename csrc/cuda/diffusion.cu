// CUDA backend of the diffusion arithmetic: a thread takes four consecutive elements of an item, the four
// normals of one Philox counter, and each input and output crosses memory once.
//
// What is the same for a whole item is computed by one thread of the block, in double, while the loads of the
// others are under way. Where items are a multiple of four elements long and the arrays aligned, four
// elements are one load or store (128 bits of float, 64 of half); everywhere else they go one by one.
#include "ddpo3d_fast/diffusion.h"

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>

#include "../maths/diffusion.h"
#include "../maths/philox.h"
#include "launch.cuh"

namespace ddpo3d_fast {
namespace {

constexpr int warp = 32;
constexpr unsigned full_warp = 0xffffffffu;
constexpr int item_threads = 256;   // of a block that works on one item
constexpr int action_threads = 128; // of a block that loops over a view's actions: there are fewer of them
constexpr int table_size = 32;      // actions whose coefficients a block holds at a time

// ---- four elements
// --------------------------------------------------------------------------------------------------

struct Quad {
  float x[4];
};

// Four input elements as they lie in memory. They are converted where they are used, so that all of a
// thread's loads are under way before it waits for the first.
struct RawQuad {
  uint32_t words[4];
};

// `count` elements from element `first` on; the rest of the four are zeros.
template <bool vectorized>
__device__ __forceinline__ RawQuad load_raw(const Input &input, int64_t first, int count) {
  RawQuad raw{};
  if (input.type == DataType::float32) {
    const float *data = static_cast<const float *>(input.data) + first;
    if constexpr (vectorized) {
      const float4 four = __ldg(reinterpret_cast<const float4 *>(data));
      memcpy(raw.words, &four, sizeof four);
    } else {
      for (int j = 0; j < 4; ++j)
        if (j < count) {
          const float one = __ldg(data + j);
          memcpy(&raw.words[j], &one, sizeof one);
        }
    }
  } else {
    const uint16_t *data = static_cast<const uint16_t *>(input.data) + first;
    if constexpr (vectorized) {
      const uint2 four = __ldg(reinterpret_cast<const uint2 *>(data));
      raw.words[0] = four.x;
      raw.words[1] = four.y;
    } else {
      for (int j = 0; j < 4; ++j)
        if (j < count)
          raw.words[j / 2] |= uint32_t(__ldg(data + j)) << (16 * (j % 2));
    }
  }
  return raw;
}

__device__ __forceinline__ Quad to_floats(const RawQuad &raw, DataType type) {
  Quad quad;
  if (type == DataType::float32) {
    memcpy(quad.x, raw.words, sizeof quad.x);
    return quad;
  }
  for (int j = 0; j < 4; ++j) {
    const uint16_t bits = uint16_t(raw.words[j / 2] >> (16 * (j % 2)));
    if (type == DataType::float16) {
      __half half;
      memcpy(&half, &bits, sizeof half);
      quad.x[j] = __half2float(half);
    } else { // bfloat16 is the upper half of a float
      const uint32_t float_bits = uint32_t(bits) << 16;
      memcpy(&quad.x[j], &float_bits, sizeof float_bits);
    }
  }
  return quad;
}

// Writes `count` elements from element `first` on. The index is divided rather than the address cast: only
// then does the compiler see the alignment, and make one store of it.
template <bool vectorized>
__device__ __forceinline__ void store(float *out, int64_t first, const Quad &quad, int count) {
  if constexpr (vectorized) {
    reinterpret_cast<float4 *>(out)[uint64_t(first) / 4] =
        make_float4(quad.x[0], quad.x[1], quad.x[2], quad.x[3]);
  } else {
    for (int j = 0; j < 4; ++j)
      if (j < count)
        out[first + j] = quad.x[j];
  }
}

__device__ __forceinline__ Quad normals_of_counter(uint64_t seed, uint64_t stream, uint64_t counter) {
  const PhiloxWords words = philox_words(seed, stream, counter);
  Quad normals;
  box_muller(words.x0, words.x1, normals.x[0], normals.x[1]);
  box_muller(words.x2, words.x3, normals.x[2], normals.x[3]);
  return normals;
}

// Noise of the elements first .. first + 3 of an array, which two counters share where `first` is no multiple
// of four.
template <bool vectorized>
__device__ __forceinline__ Quad normals(uint64_t seed, uint64_t stream, uint64_t first) {
  const Quad low = normals_of_counter(seed, stream, first / 4);
  if (vectorized || first % 4 == 0)
    return low;
  const Quad high = normals_of_counter(seed, stream, first / 4 + 1);
  float x[7] = {low.x[0], low.x[1], low.x[2], low.x[3], high.x[0], high.x[1], high.x[2]};
  // Moved by first % 4 places in two steps of constant length: an index known only at run time would put x
  // into local memory.
  if (first & 1)
    for (int j = 0; j < 6; ++j)
      x[j] = x[j + 1];
  if (first & 2)
    for (int j = 0; j < 4; ++j)
      x[j] = x[j + 2];
  return {{x[0], x[1], x[2], x[3]}};
}

__device__ __forceinline__ uint64_t value_or_zero(const uint64_t *value) { return value ? __ldg(value) : 0; }

// ---- who works on what
// ----------------------------------------------------------------------------------------------

// A row, an item or a view, is shared by `chunks` blocks of the grid; a thread has up to four of its
// elements.
struct Place {
  int64_t row;
  int64_t offset; // of the thread's first element in the row
  int count;      // how many elements it has, 0 to 4
};

__device__ __forceinline__ Place find_place(int64_t dims, unsigned chunks) {
  Place place;
  place.row = blockIdx.x / chunks;
  place.offset = 4 * (int64_t(blockIdx.x % chunks) * blockDim.x + threadIdx.x);
  const int64_t left = dims - place.offset;
  place.count = left >= 4 ? 4 : left > 0 ? int(left) : 0;
  return place;
}

int64_t chunks_of(int64_t dims, int threads) { return (dims + 4 * threads - 1) / (4 * threads); }

// ---- the UNet's output
// ----------------------------------------------------------------------------------------------

struct RawPrediction {
  RawQuad noisy, conditional, unconditional;
};

template <bool vectorized>
__device__ __forceinline__ RawPrediction load_raw(const Prediction &p, int64_t first, int count) {
  RawPrediction raw{};
  if (count > 0) {
    raw.noisy = load_raw<vectorized>(p.noisy, first, count);
    raw.conditional = load_raw<vectorized>(p.conditional, first, count);
    if (p.unconditional.data)
      raw.unconditional = load_raw<vectorized>(p.unconditional, first, count);
  }
  return raw;
}

__device__ __forceinline__ GuessCoefficients item_coefficients(const Prediction &p, int64_t item) {
  return guess_coefficients(__ldg(p.alphas_cumprod + item), PredictionType(p.type),
                            p.clean_scale ? __ldg(p.clean_scale + item) : 1.f);
}

// Clean guess and guided noise of four elements.
__device__ __forceinline__ void guess_quad(const Prediction &p, const GuessCoefficients &c,
                                           const RawPrediction &raw, Quad &clean, Quad &guided_noise) {
  const Quad noisy = to_floats(raw.noisy, p.noisy.type);
  Quad prediction = to_floats(raw.conditional, p.conditional.type);
  if (p.unconditional.data) {
    const Quad unconditional = to_floats(raw.unconditional, p.unconditional.type);
    for (int j = 0; j < 4; ++j)
      prediction.x[j] = guided_prediction(prediction.x[j], unconditional.x[j], p.guidance_scale);
  }
  const bool derived = p.clip || p.clean_scale; // is the noise derived from the clean guess?
  const float low = p.clip ? p.clip_low : -INFINITY, high = p.clip ? p.clip_high : INFINITY;
  for (int j = 0; j < 4; ++j) {
    const Guess g = derived ? clipped_guess(c, noisy.x[j], prediction.x[j], low, high)
                            : guess(c, noisy.x[j], prediction.x[j]);
    clean.x[j] = g.clean;
    guided_noise.x[j] = g.noise;
  }
}

// ---- the kernels
// ----------------------------------------------------------------------------------------------------

template <bool vectorized>
__global__ void __launch_bounds__(item_threads)
    philox_normal_kernel(PhiloxNormalParams p, const uint64_t *stream_offset) {
  const int64_t counter = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, first = 4 * counter;
  if (first >= p.count)
    return;
  const Quad normal = normals_of_counter(p.seed, p.stream + value_or_zero(stream_offset), uint64_t(counter));
  const int64_t left = p.count - first;
  if (vectorized && left >= 4)
    store<true>(p.out, first, normal, 4);
  else
    store<false>(p.out, first, normal, left >= 4 ? 4 : int(left));
}

template <bool vectorized>
__global__ void __launch_bounds__(action_threads)
    add_noise_kernel(AddNoiseParams p, const uint64_t *stream_offset, unsigned chunks) {
  DDPO3D_SHARED(NoiseLevel[table_size], levels);
  const Place place = find_place(p.dims, chunks);
  RawQuad raw{};
  if (place.count > 0)
    raw = load_raw<vectorized>(p.latents, place.row * p.dims + place.offset, place.count);
  const uint64_t stream = p.stream + value_or_zero(stream_offset);
  for (int64_t k = 0; k < p.actions; ++k) {
    const int64_t item = place.row * p.actions + k;
    if (k % table_size == 0) {
      __syncthreads(); // the last table has been read
      if (threadIdx.x < table_size && k + threadIdx.x < p.actions)
        levels[threadIdx.x] = noise_level(__ldg(p.alphas_cumprod + item + threadIdx.x));
      __syncthreads();
    }
    if (place.count == 0)
      continue;
    const NoiseLevel level = levels[k % table_size];
    const int64_t first = item * p.dims + place.offset;
    const Quad latents = to_floats(raw, p.latents.type);
    Quad noisy = normals<vectorized>(p.seed, stream, uint64_t(first));
    for (int j = 0; j < 4; ++j)
      noisy.x[j] = add_noise(level, latents.x[j], noisy.x[j]);
    store<vectorized>(p.noisy, first, noisy, place.count);
  }
}

// The sum over the block, the same to the bit in every run; valid in thread 0.
__device__ __forceinline__ double block_sum(double value) {
  DDPO3D_SHARED(double[item_threads / warp], sums);
  for (int step = warp / 2; step > 0; step /= 2)
    value += __shfl_down_sync(full_warp, value, step);
  if (threadIdx.x % warp == 0)
    sums[threadIdx.x / warp] = value;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0)
    for (int i = 0; i < item_threads / warp; ++i)
      total += sums[i];
  return total;
}

template <bool vectorized>
__global__ void __launch_bounds__(item_threads, 4)
    denoise_action_kernel(DenoiseActionParams p, double *squares, const uint64_t *stream_offset,
                          unsigned chunks) {
  DDPO3D_SHARED(GuessCoefficients, coefficients);
  DDPO3D_SHARED(DdimStep, step);
  const Place place = find_place(p.dims, chunks);
  const int64_t first = place.row * p.dims + place.offset;
  const bool wants_guess = p.guided_noise || p.clean || p.mean || p.action;
  RawPrediction raw{};
  Quad normal{};
  if (wants_guess)
    raw = load_raw<vectorized>(p.prediction, first, place.count);
  if (place.count > 0 && (p.action || p.log_prob))
    normal = normals<vectorized>(p.seed, p.stream + value_or_zero(stream_offset), uint64_t(first));
  if (wants_guess) {
    if (threadIdx.x == 0) {
      coefficients = item_coefficients(p.prediction, place.row);
      step = ddim_step(__ldg(p.prediction.alphas_cumprod + place.row),
                       __ldg(p.prev_alphas_cumprod + place.row), p.eta);
    }
    __syncthreads();
    if (place.count > 0) {
      Quad clean, guided_noise, mean, action;
      guess_quad(p.prediction, coefficients, raw, clean, guided_noise);
      for (int j = 0; j < 4; ++j) {
        mean.x[j] = ddim_mean(step, {clean.x[j], guided_noise.x[j]});
        action.x[j] = ddim_action(step, mean.x[j], normal.x[j]);
      }
      if (p.guided_noise)
        store<vectorized>(p.guided_noise, first, guided_noise, place.count);
      if (p.clean)
        store<vectorized>(p.clean, first, clean, place.count);
      if (p.mean)
        store<vectorized>(p.mean, first, mean, place.count);
      if (p.action)
        store<vectorized>(p.action, first, action, place.count);
    }
  }
  if (p.log_prob) {
    double sum = 0.0;
    for (int j = 0; j < 4; ++j)
      if (j < place.count)
        sum += double(normal.x[j]) * double(normal.x[j]);
    sum = block_sum(sum);
    if (threadIdx.x == 0)
      squares[blockIdx.x] = sum;
  }
}

// A warp per item: the sum of its blocks' squares, in an order that the sizes alone decide.
__global__ void __launch_bounds__(item_threads)
    log_prob_kernel(DenoiseActionParams p, const double *squares, unsigned chunks) {
  const int64_t item = int64_t(blockIdx.x) * (item_threads / warp) + threadIdx.x / warp;
  if (item >= p.items)
    return;
  double sum = 0.0;
  for (unsigned chunk = threadIdx.x % warp; chunk < chunks; chunk += warp)
    sum += squares[item * chunks + chunk];
  for (int step = warp / 2; step > 0; step /= 2)
    sum += __shfl_down_sync(full_warp, sum, step);
  if (threadIdx.x % warp == 0) {
    const DdimStep step =
        ddim_step(__ldg(p.prediction.alphas_cumprod + item), __ldg(p.prev_alphas_cumprod + item), p.eta);
    p.log_prob[item] = ddim_log_prob(step, sum, p.dims);
  }
}

// What an action contributes to its view's gradient.
struct ActionCoefficients {
  GuessCoefficients guess;
  float residual_weight, action_weight;
};

template <bool vectorized>
__global__ void __launch_bounds__(action_threads)
    score_residual_kernel(ScoreResidualParams p, const uint64_t *stream_offset, unsigned chunks) {
  DDPO3D_SHARED(ActionCoefficients[table_size], table);
  const Place place = find_place(p.dims, chunks);
  const int64_t first_item = place.row * p.actions;
  const uint64_t offset = value_or_zero(stream_offset);
  Quad grad{};
  RawPrediction next = load_raw<vectorized>(p.prediction, first_item * p.dims + place.offset, place.count);
  for (int64_t k = 0; k < p.actions; ++k) {
    const int64_t item = first_item + k, first = item * p.dims + place.offset;
    const RawPrediction raw = next;
    if (k + 1 < p.actions) // under way while this action is computed
      next = load_raw<vectorized>(p.prediction, first + p.dims, place.count);
    if (k % table_size == 0) {
      __syncthreads(); // the last table has been read
      if (threadIdx.x < table_size && k + threadIdx.x < p.actions) {
        const int64_t mine = item + threadIdx.x;
        table[threadIdx.x] = {item_coefficients(p.prediction, mine), __ldg(p.residual_weight + mine),
                              p.action_weight ? __ldg(p.action_weight + mine) : 0.f};
      }
      __syncthreads();
    }
    if (place.count == 0)
      continue;
    const ActionCoefficients &c = table[k % table_size];
    Quad clean, guided_noise;
    guess_quad(p.prediction, c.guess, raw, clean, guided_noise);
    const Quad noise = normals<vectorized>(p.seed, p.noise_stream + offset, uint64_t(first));
    for (int j = 0; j < 4; ++j)
      grad.x[j] += score_residual(c.residual_weight, guided_noise.x[j], noise.x[j]);
    if (c.action_weight != 0.f) {
      const Quad normal = normals<vectorized>(p.seed, p.action_stream + offset, uint64_t(first));
      for (int j = 0; j < 4; ++j)
        grad.x[j] -= c.action_weight * normal.x[j];
    }
  }
  if (place.count > 0)
    store<vectorized>(p.grad, place.row * p.dims + place.offset, grad, place.count);
}

// Four elements of what a mixed residual reads; those of an absent input are zeros.
struct RawMixture {
  RawQuad noisy, conditional, unconditional, negative;
};

template <bool vectorized>
__device__ __forceinline__ RawMixture load_raw(const MixedResidualParams &p, int64_t first, int count) {
  RawMixture raw{};
  if (count > 0) {
    if (p.noisy.data)
      raw.noisy = load_raw<vectorized>(p.noisy, first, count);
    raw.conditional = load_raw<vectorized>(p.conditional, first, count);
    raw.unconditional = load_raw<vectorized>(p.unconditional, first, count);
    if (p.negative.data)
      raw.negative = load_raw<vectorized>(p.negative, first, count);
  }
  return raw;
}

template <bool vectorized>
__global__ void __launch_bounds__(action_threads)
    mixed_residual_kernel(MixedResidualParams p, unsigned chunks) {
  DDPO3D_SHARED(MixtureCoefficients[table_size], table);
  const Place place = find_place(p.dims, chunks);
  const int64_t first_item = place.row * p.actions;
  Quad grad{};
  RawMixture next = load_raw<vectorized>(p, first_item * p.dims + place.offset, place.count);
  for (int64_t k = 0; k < p.actions; ++k) {
    const int64_t item = first_item + k, first = item * p.dims + place.offset;
    const RawMixture raw = next;
    if (k + 1 < p.actions) // under way while this action is computed
      next = load_raw<vectorized>(p, first + p.dims, place.count);
    if (k % table_size == 0) {
      __syncthreads(); // the last table has been read
      if (threadIdx.x < table_size && k + threadIdx.x < p.actions) {
        const int64_t mine = item + threadIdx.x;
        const float *mixture = p.mixture + 3 * mine;
        table[threadIdx.x] =
            mixture_coefficients(guess_coefficients(__ldg(p.alphas_cumprod + mine), PredictionType(p.type)),
                                 __ldg(p.residual_weight + mine), __ldg(mixture), __ldg(mixture + 1),
                                 p.negative.data ? __ldg(mixture + 2) : 0.f);
      }
      __syncthreads();
    }
    const MixtureCoefficients c = table[k % table_size];
    const Quad noisy = to_floats(raw.noisy, p.noisy.type);
    const Quad conditional = to_floats(raw.conditional, p.conditional.type);
    const Quad unconditional = to_floats(raw.unconditional, p.unconditional.type);
    const Quad negative = to_floats(raw.negative, p.negative.type);
    for (int j = 0; j < 4; ++j)
      grad.x[j] += mixed_residual(c, noisy.x[j], conditional.x[j], unconditional.x[j], negative.x[j]);
  }
  if (place.count > 0)
    store<vectorized>(p.grad, place.row * p.dims + place.offset, grad, place.count);
}

// ---- launches
// --------------------------------------------------------------------------------------------------------

bool aligned(const void *address, size_t bytes) { return reinterpret_cast<uintptr_t>(address) % bytes == 0; }

// Whether four elements can cross memory at once; an absent array never stands in the way.
bool aligned(const float *address) { return aligned(address, sizeof(float4)); }
bool aligned(const Input &input) {
  return aligned(input.data, input.type == DataType::float32 ? sizeof(float4) : sizeof(uint2));
}
bool aligned(const Prediction &p) {
  return aligned(p.noisy) && aligned(p.conditional) && aligned(p.unconditional);
}

} // namespace

void philox_normal_cuda(const PhiloxNormalParams &params, const uint64_t *stream_offset, void *cuda_stream) {
  launch("philox_normal", aligned(params.out) ? philox_normal_kernel<true> : philox_normal_kernel<false>,
         dim3(unsigned(chunks_of(params.count, item_threads))), dim3(item_threads), 0,
         static_cast<cudaStream_t>(cuda_stream), params, stream_offset);
}

void add_noise_cuda(const AddNoiseParams &params, const uint64_t *stream_offset, void *cuda_stream) {
  const int64_t chunks = chunks_of(params.dims, action_threads);
  const bool vectorized = params.dims % 4 == 0 && aligned(params.latents) && aligned(params.noisy);
  launch("add_noise", vectorized ? add_noise_kernel<true> : add_noise_kernel<false>,
         dim3(unsigned(params.views * chunks)), dim3(action_threads), 0,
         static_cast<cudaStream_t>(cuda_stream), params, stream_offset, unsigned(chunks));
}

int64_t denoise_action_squares(int64_t items, int64_t dims) { return items * chunks_of(dims, item_threads); }

void denoise_action_cuda(const DenoiseActionParams &params, double *squares, const uint64_t *stream_offset,
                         void *cuda_stream) {
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  const int64_t chunks = chunks_of(params.dims, item_threads);
  const bool vectorized = params.dims % 4 == 0 && aligned(params.prediction) &&
                          aligned(params.guided_noise) && aligned(params.clean) && aligned(params.mean) &&
                          aligned(params.action);
  if (params.guided_noise || params.clean || params.mean || params.action || params.log_prob)
    launch("denoise_action", vectorized ? denoise_action_kernel<true> : denoise_action_kernel<false>,
           dim3(unsigned(params.items * chunks)), dim3(item_threads), 0, stream, params, squares,
           stream_offset, unsigned(chunks));
  if (params.log_prob) {
    const int64_t items_of_block = item_threads / warp;
    launch("log_prob", log_prob_kernel, dim3(unsigned((params.items + items_of_block - 1) / items_of_block)),
           dim3(item_threads), 0, stream, params, squares, unsigned(chunks));
  }
}

void score_residual_cuda(const ScoreResidualParams &params, const uint64_t *stream_offset,
                         void *cuda_stream) {
  const int64_t chunks = chunks_of(params.dims, action_threads);
  const bool vectorized = params.dims % 4 == 0 && aligned(params.prediction) && aligned(params.grad);
  launch("score_residual", vectorized ? score_residual_kernel<true> : score_residual_kernel<false>,
         dim3(unsigned(params.views * chunks)), dim3(action_threads), 0,
         static_cast<cudaStream_t>(cuda_stream), params, stream_offset, unsigned(chunks));
}

void mixed_residual_cuda(const MixedResidualParams &params, void *cuda_stream) {
  const int64_t chunks = chunks_of(params.dims, action_threads);
  const bool vectorized = params.dims % 4 == 0 && aligned(params.noisy) && aligned(params.conditional) &&
                          aligned(params.unconditional) && aligned(params.negative) && aligned(params.grad);
  launch("mixed_residual", vectorized ? mixed_residual_kernel<true> : mixed_residual_kernel<false>,
         dim3(unsigned(params.views * chunks)), dim3(action_threads), 0,
         static_cast<cudaStream_t>(cuda_stream), params, unsigned(chunks));
}

} // namespace ddpo3d_fast
