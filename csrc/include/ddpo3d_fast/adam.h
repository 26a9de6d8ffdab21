// The fused Adam step, for any C++ program: plain pointers and sizes, no torch.
#pragma once

#include <cstdint>

namespace ddpo3d_fast {

struct AdamParams {
  float *param;      // [rows, columns], updated in place
  const float *grad; // [rows, columns]
  float *exp_avg;    // [rows, columns], updated in place
  float *exp_avg_sq; // [rows, columns], updated in place
  int64_t rows, columns;
  int64_t step;                    // 1 at the first update
  float learning_rate;             // used where row_learning_rates is null
  const float *row_learning_rates; // [rows] or null
  double beta1, beta2, epsilon;
};

void adam(const AdamParams &params);

// ---- the same on a GPU
// ------------------------------------------------------------------------------------------------

// Numbers in device memory: a captured graph freezes those in AdamParams and reads these at every replay.
struct AdamDeviceValues {
  const int64_t *step;       // replaces AdamParams::step; null: that one
  const float *rate_scales;  // multiply the groups' learning rates; null: 1
  int64_t rate_scale_stride; // from group to group; 0: one number for all
  const uint32_t *skip;      // where it is not 0 nothing is updated; null: update
};

constexpr int max_adam_groups = 8;

// Updates `count` groups, at most max_adam_groups, in one launch on `cuda_stream`, a cudaStream_t. The
// pointers in the groups are device pointers, `groups` itself is not. Values are not checked: a step below 1
// or a negative rate gives what the formula gives. std::invalid_argument for too many groups,
// std::runtime_error if the launch fails.
void adam_cuda(const AdamParams *groups, int count, const AdamDeviceValues &device_values, void *cuda_stream);

} // namespace ddpo3d_fast
