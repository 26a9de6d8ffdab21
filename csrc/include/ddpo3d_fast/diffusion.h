// The fused diffusion arithmetic, for any C++ program: plain pointers and sizes, no torch.
// All arrays are contiguous. B = views * actions items; action k of view v is item v * actions + k.
#pragma once

#include <cstdint>

namespace ddpo3d_fast {

enum class DataType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// An input that may be stored in half precision; arithmetic is float32.
struct Input {
  const void *data; // null where the input is optional and absent
  DataType type;
};

struct PhiloxNormalParams {
  float *out; // [count]
  int64_t count;
  uint64_t seed, stream;
};

struct AddNoiseParams {
  Input latents;               // [views, dims]
  const float *alphas_cumprod; // [B], in (0, 1]
  float *noisy;                // [B, dims]
  int64_t views, actions, dims;
  uint64_t seed, stream; // of the noise, an array [B, dims]
};

// What turns a UNet's output into guided noise and clean guess. All arrays per item.
struct Prediction {
  Input noisy;                 // [B, dims]
  Input conditional;           // [B, dims]
  Input unconditional;         // [B, dims], null: no guidance
  const float *alphas_cumprod; // [B], in (0, 1]
  float guidance_scale;
  int type;                  // PredictionType of maths/diffusion.h
  bool clip;                 // clip the clean guess and derive the guided noise from it
  float clip_low, clip_high; // range of the clean guess
  // [B] factor of the clean guess, before the clip; the guided noise is derived from the product. Null: 1
  const float *clean_scale;
};

struct DenoiseActionParams {
  Prediction prediction;
  const float *prev_alphas_cumprod; // [B], in [alphas_cumprod, 1]
  float eta;                        // 0: deterministic DDIM, 1: DDPM's variance
  int64_t items, dims;
  uint64_t seed, stream;                       // of the action's noise, an array [B, dims]
  float *guided_noise, *clean, *mean, *action; // [B, dims] each, null: not wanted
  float *log_prob;                             // [B], null: not wanted
};

struct ScoreResidualParams {
  Prediction prediction;
  const float *residual_weight; // [B]
  const float *action_weight;   // [B], null: no policy-gradient term
  int64_t views, actions, dims;
  uint64_t seed, noise_stream; // of the forward noise, an array [B, dims]
  uint64_t action_stream;      // of the actions' noise, an array [B, dims]
  float *grad;                 // [views, dims]
};

// A residual of up to three predictions, without noise.
struct MixedResidualParams {
  Input noisy;                  // [B, dims], null: type is epsilon, which does not need it
  Input conditional;            // [B, dims]
  Input unconditional;          // [B, dims]
  Input negative;               // [B, dims], null: its coefficients count as 0
  const float *alphas_cumprod;  // [B], in (0, 1]
  const float *residual_weight; // [B]
  const float *mixture;         // [B, 3] coefficients of the conditional, unconditional and negative noise
  int type;                     // PredictionType of maths/diffusion.h
  int64_t views, actions, dims;
  float *grad; // [views, dims]
};

void philox_normal(const PhiloxNormalParams &params);
void add_noise(const AddNoiseParams &params);
void denoise_action(const DenoiseActionParams &params);
void score_residual(const ScoreResidualParams &params);
void mixed_residual(const MixedResidualParams &params);

// ---- the same on a GPU
// ------------------------------------------------------------------------------------------------
//
// Every pointer is a device pointer; `cuda_stream` is a cudaStream_t, on which the work is queued and not
// waited for. `stream_offset` is one number in device memory that is added to all stream numbers of the
// noise: a captured graph freezes the numbers in `params` and reads this one at every replay. Null: 0.
// Values are not checked: an abar outside (0, 1] gives what the formulas give, NaN or infinity.
// std::runtime_error if a launch fails.

void philox_normal_cuda(const PhiloxNormalParams &params, const uint64_t *stream_offset, void *cuda_stream);
void add_noise_cuda(const AddNoiseParams &params, const uint64_t *stream_offset, void *cuda_stream);

// One launch, and a second small one where log_prob is wanted, which needs `squares`.
void denoise_action_cuda(const DenoiseActionParams &params, double *squares, const uint64_t *stream_offset,
                         void *cuda_stream);
int64_t denoise_action_squares(int64_t items, int64_t dims); // how many doubles `squares` must hold

void score_residual_cuda(const ScoreResidualParams &params, const uint64_t *stream_offset, void *cuda_stream);
void mixed_residual_cuda(const MixedResidualParams &params, void *cuda_stream);

} // namespace ddpo3d_fast
