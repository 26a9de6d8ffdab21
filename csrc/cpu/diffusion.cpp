// CPU backend of the diffusion arithmetic: fixed blocks of elements that stay in the L1 cache, threads over
// blocks.
//
// A block begins at a fixed element of an item, so no result depends on how many threads share the blocks.
// Inside a block the work goes stage by stage over small float arrays; each stage is one plain loop that the
// compiler turns into SIMD, and each input and output crosses memory once.
#include "ddpo3d_fast/diffusion.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "../maths/diffusion.h"
#include "../maths/philox.h"
#include "parallel.h"
#include "simd_clones.h"

namespace ddpo3d_fast {
namespace {

constexpr int block_size = 1024;
constexpr int block_counters =
    block_size / 4 + 1; // one more: a block may begin inside a counter's four words

// ---- stages
// --------------------------------------------------------------------------------------------------------

DDPO3D_SIMD_CLONES
void normal_stage(uint64_t seed, uint64_t stream, uint64_t first_counter, float *__restrict__ out) {
  for (int j = 0; j < block_counters; ++j) {
    const PhiloxWords words = philox_words(seed, stream, first_counter + uint64_t(j));
    float n0, n1, n2, n3;
    box_muller(words.x0, words.x1, n0, n1);
    box_muller(words.x2, words.x3, n2, n3);
    out[4 * j] = n0;
    out[4 * j + 1] = n1;
    out[4 * j + 2] = n2;
    out[4 * j + 3] = n3;
  }
}

// IEEE half to float without a table or a branch: the exponent is rebased by a multiplication, which also
// normalises subnormals; infinities and NaNs get their exponent back.
DDPO3D_SIMD_CLONES
void from_float16_stage(const uint16_t *__restrict__ in, int count, float *__restrict__ out) {
  for (int i = 0; i < count; ++i) {
    const uint32_t half = in[i];
    const uint32_t magnitude_bits = (half & 0x7fffu) << 13;
    float magnitude;
    memcpy(&magnitude, &magnitude_bits, sizeof magnitude);
    magnitude *= 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &magnitude, sizeof bits);
    bits |= (half & 0x8000u) << 16;
    bits |= (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    memcpy(&out[i], &bits, sizeof bits);
  }
}

DDPO3D_SIMD_CLONES
void from_bfloat16_stage(const uint16_t *__restrict__ in, int count, float *__restrict__ out) {
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = uint32_t(in[i]) << 16;
    memcpy(&out[i], &bits, sizeof bits);
  }
}

DDPO3D_SIMD_CLONES
void add_noise_stage(NoiseLevel level, const float *__restrict__ z, const float *__restrict__ eps, int count,
                     float *__restrict__ out) {
  for (int i = 0; i < count; ++i)
    out[i] = add_noise(level, z[i], eps[i]);
}

DDPO3D_SIMD_CLONES
void guidance_stage(float scale, const float *__restrict__ conditional,
                    const float *__restrict__ unconditional, int count, float *__restrict__ out) {
  for (int i = 0; i < count; ++i)
    out[i] = guided_prediction(conditional[i], unconditional[i], scale);
}

DDPO3D_SIMD_CLONES
void guess_stage(GuessCoefficients c, const float *__restrict__ noisy, const float *__restrict__ prediction,
                 int count, float *__restrict__ clean, float *__restrict__ noise) {
  for (int i = 0; i < count; ++i) {
    const Guess g = guess(c, noisy[i], prediction[i]);
    clean[i] = g.clean;
    noise[i] = g.noise;
  }
}

DDPO3D_SIMD_CLONES
void clipped_guess_stage(GuessCoefficients c, float low, float high, const float *__restrict__ noisy,
                         const float *__restrict__ prediction, int count, float *__restrict__ clean,
                         float *__restrict__ noise) {
  for (int i = 0; i < count; ++i) {
    const Guess g = clipped_guess(c, noisy[i], prediction[i], low, high);
    clean[i] = g.clean;
    noise[i] = g.noise;
  }
}

DDPO3D_SIMD_CLONES
void mean_stage(DdimStep step, const float *__restrict__ clean, const float *__restrict__ noise, int count,
                float *__restrict__ mean) {
  for (int i = 0; i < count; ++i)
    mean[i] = ddim_mean(step, {clean[i], noise[i]});
}

DDPO3D_SIMD_CLONES
void action_stage(DdimStep step, const float *__restrict__ mean, const float *__restrict__ normal, int count,
                  float *__restrict__ action) {
  for (int i = 0; i < count; ++i)
    action[i] = ddim_action(step, mean[i], normal[i]);
}

// Sum of squares in double, in eight lanes whose order is fixed here and not by the vector width.
DDPO3D_SIMD_CLONES
double sum_of_squares_stage(const float *__restrict__ x, int count) {
  double lanes[8] = {};
  int i = 0;
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; ++j)
      lanes[j] += double(x[i + j]) * double(x[i + j]);
  for (; i < count; ++i)
    lanes[0] += double(x[i]) * double(x[i]);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

DDPO3D_SIMD_CLONES
void residual_stage(float weight, const float *__restrict__ guided, const float *__restrict__ noise,
                    int count, float *__restrict__ grad) {
  for (int i = 0; i < count; ++i)
    grad[i] += score_residual(weight, guided[i], noise[i]);
}

DDPO3D_SIMD_CLONES
void action_gradient_stage(float weight, const float *__restrict__ normal, int count,
                           float *__restrict__ grad) {
  for (int i = 0; i < count; ++i)
    grad[i] -= weight * normal[i];
}

DDPO3D_SIMD_CLONES
void mixed_residual_stage(MixtureCoefficients c, const float *__restrict__ noisy,
                          const float *__restrict__ conditional, const float *__restrict__ unconditional,
                          const float *__restrict__ negative, int count, float *__restrict__ grad) {
  for (int i = 0; i < count; ++i)
    grad[i] += mixed_residual(c, noisy[i], conditional[i], unconditional[i], negative[i]);
}

// ---- blocks
// --------------------------------------------------------------------------------------------------------

// Noise of the elements first .. first + block_size of an array; buffer holds 4 * block_counters floats.
const float *normals(uint64_t seed, uint64_t stream, int64_t first, float *buffer) {
  normal_stage(seed, stream, uint64_t(first) / 4, buffer);
  return buffer + first % 4;
}

// The input's elements as floats: in place where they are floats already, else converted into the buffer.
const float *load(const Input &input, int64_t first, int count, float *buffer) {
  if (input.type == DataType::float32)
    return static_cast<const float *>(input.data) + first;
  const uint16_t *half = static_cast<const uint16_t *>(input.data) + first;
  if (input.type == DataType::float16)
    from_float16_stage(half, count, buffer);
  else
    from_bfloat16_stage(half, count, buffer);
  return buffer;
}

// The same, and zeros of an input that is absent.
const float *load_or_zeros(const Input &input, int64_t first, int count, float *buffer) {
  alignas(64) static const float zeros[block_size] = {};
  return input.data ? load(input, first, count, buffer) : zeros;
}

// Clean guess and guided noise of `count` elements that begin at `first` in item `item`.
void guess_block(const Prediction &p, int64_t item, int64_t first, int count, float *clean, float *noise) {
  alignas(64) float noisy_buffer[block_size], conditional_buffer[block_size],
      unconditional_buffer[block_size];
  alignas(64) float guided_buffer[block_size];
  const float *noisy = load(p.noisy, first, count, noisy_buffer);
  const float *prediction = load(p.conditional, first, count, conditional_buffer);
  if (p.unconditional.data) {
    const float *unconditional = load(p.unconditional, first, count, unconditional_buffer);
    guidance_stage(p.guidance_scale, prediction, unconditional, count, guided_buffer);
    prediction = guided_buffer;
  }
  const GuessCoefficients c = guess_coefficients(p.alphas_cumprod[item], PredictionType(p.type),
                                                 p.clean_scale ? p.clean_scale[item] : 1.f);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  if (p.clip || p.clean_scale)
    clipped_guess_stage(c, p.clip ? p.clip_low : -infinity, p.clip ? p.clip_high : infinity, noisy,
                        prediction, count, clean, noise);
  else
    guess_stage(c, noisy, prediction, count, clean, noise);
}

int64_t blocks_of(int64_t dims) { return (dims + block_size - 1) / block_size; }

int count_of(int64_t dims, int64_t block) {
  return int(std::min<int64_t>(block_size, dims - block * block_size));
}

} // namespace

// ---- the operations
// ------------------------------------------------------------------------------------------------

void philox_normal(const PhiloxNormalParams &params) {
  parallel_for(blocks_of(params.count), [&](int64_t block) {
    alignas(64) float buffer[4 * block_counters];
    const int64_t first = block * block_size;
    const float *noise = normals(params.seed, params.stream, first, buffer);
    std::copy(noise, noise + count_of(params.count, block), params.out + first);
  });
}

void add_noise(const AddNoiseParams &params) {
  const int64_t blocks = blocks_of(params.dims);
  parallel_for(params.views * blocks, [&](int64_t task) {
    const int64_t view = task / blocks, offset = task % blocks * block_size;
    const int count = count_of(params.dims, task % blocks);
    alignas(64) float latent_buffer[block_size], noise_buffer[4 * block_counters];
    const float *latents = load(params.latents, view * params.dims + offset, count, latent_buffer);
    for (int64_t item = view * params.actions; item < (view + 1) * params.actions; ++item) {
      const int64_t first = item * params.dims + offset;
      const float *noise = normals(params.seed, params.stream, first, noise_buffer);
      add_noise_stage(noise_level(params.alphas_cumprod[item]), latents, noise, count, params.noisy + first);
    }
  });
}

void denoise_action(const DenoiseActionParams &params) {
  const int64_t blocks = blocks_of(params.dims);
  const bool wants_normal = params.action || params.log_prob;
  const bool wants_mean = params.mean || params.action;
  std::vector<double> squares(params.log_prob ? params.items * blocks : 0);
  parallel_for(params.items * blocks, [&](int64_t task) {
    const int64_t item = task / blocks, first = item * params.dims + task % blocks * block_size;
    const int count = count_of(params.dims, task % blocks);
    alignas(64) float clean_buffer[block_size], guided_buffer[block_size], mean_buffer[block_size];
    alignas(64) float normal_buffer[4 * block_counters];
    float *clean = params.clean ? params.clean + first : clean_buffer;
    float *guided = params.guided_noise ? params.guided_noise + first : guided_buffer;
    float *mean = params.mean ? params.mean + first : mean_buffer;
    guess_block(params.prediction, item, first, count, clean, guided);
    const DdimStep step =
        ddim_step(params.prediction.alphas_cumprod[item], params.prev_alphas_cumprod[item], params.eta);
    if (wants_mean)
      mean_stage(step, clean, guided, count, mean);
    if (!wants_normal)
      return;
    const float *normal = normals(params.seed, params.stream, first, normal_buffer);
    if (params.action)
      action_stage(step, mean, normal, count, params.action + first);
    if (params.log_prob)
      squares[task] = sum_of_squares_stage(normal, count);
  });
  if (!params.log_prob)
    return;
  for (int64_t item = 0; item < params.items; ++item) {
    const DdimStep step =
        ddim_step(params.prediction.alphas_cumprod[item], params.prev_alphas_cumprod[item], params.eta);
    double sum = 0.0;
    for (int64_t block = 0; block < blocks; ++block)
      sum += squares[item * blocks + block];
    params.log_prob[item] = ddim_log_prob(step, sum, params.dims);
  }
}

void score_residual(const ScoreResidualParams &params) {
  const int64_t blocks = blocks_of(params.dims);
  parallel_for(params.views * blocks, [&](int64_t task) {
    const int64_t view = task / blocks, offset = task % blocks * block_size;
    const int count = count_of(params.dims, task % blocks);
    alignas(64) float clean[block_size], guided[block_size], normal_buffer[4 * block_counters];
    alignas(64) float grad[block_size] = {};
    for (int64_t item = view * params.actions; item < (view + 1) * params.actions; ++item) {
      const int64_t first = item * params.dims + offset;
      guess_block(params.prediction, item, first, count, clean, guided);
      const float *noise = normals(params.seed, params.noise_stream, first, normal_buffer);
      residual_stage(params.residual_weight[item], guided, noise, count, grad);
      if (params.action_weight && params.action_weight[item] != 0.f) {
        const float *normal = normals(params.seed, params.action_stream, first, normal_buffer);
        action_gradient_stage(params.action_weight[item], normal, count, grad);
      }
    }
    std::copy(grad, grad + count, params.grad + view * params.dims + offset);
  });
}

void mixed_residual(const MixedResidualParams &params) {
  const int64_t blocks = blocks_of(params.dims);
  parallel_for(params.views * blocks, [&](int64_t task) {
    const int64_t view = task / blocks, offset = task % blocks * block_size;
    const int count = count_of(params.dims, task % blocks);
    alignas(64) float noisy[block_size], conditional[block_size], unconditional[block_size],
        negative[block_size];
    alignas(64) float grad[block_size] = {};
    for (int64_t item = view * params.actions; item < (view + 1) * params.actions; ++item) {
      const int64_t first = item * params.dims + offset;
      const float *mixture = params.mixture + 3 * item;
      const MixtureCoefficients c = mixture_coefficients(
          guess_coefficients(params.alphas_cumprod[item], PredictionType(params.type)),
          params.residual_weight[item], mixture[0], mixture[1], params.negative.data ? mixture[2] : 0.f);
      mixed_residual_stage(c, load_or_zeros(params.noisy, first, count, noisy),
                           load(params.conditional, first, count, conditional),
                           load(params.unconditional, first, count, unconditional),
                           load_or_zeros(params.negative, first, count, negative), count, grad);
    }
    std::copy(grad, grad + count, params.grad + view * params.dims + offset);
  });
}

} // namespace ddpo3d_fast
