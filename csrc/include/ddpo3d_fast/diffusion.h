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

void philox_normal(const PhiloxNormalParams &params);
void add_noise(const AddNoiseParams &params);
void denoise_action(const DenoiseActionParams &params);
void score_residual(const ScoreResidualParams &params);

} // namespace ddpo3d_fast
