// CPU backend of Adam: fixed blocks of elements, threads over blocks, one SIMD loop inside.
#include "ddpo3d_fast/adam.h"

#include <algorithm>

#include "../maths/adam.h"
#include "parallel.h"
#include "simd_clones.h"

namespace ddpo3d_fast {
namespace {

constexpr int block_size = 2048;

DDPO3D_SIMD_CLONES
void adam_stage(AdamStep step, float learning_rate, const float *__restrict__ grad, int count,
                float *__restrict__ param, float *__restrict__ exp_avg, float *__restrict__ exp_avg_sq) {
  for (int i = 0; i < count; ++i)
    adam_update(step, learning_rate, grad[i], param[i], exp_avg[i], exp_avg_sq[i]);
}

DDPO3D_SIMD_CLONES
void adam_rows_stage(AdamStep step, const float *__restrict__ learning_rates, const float *__restrict__ grad,
                     int count, float *__restrict__ param, float *__restrict__ exp_avg,
                     float *__restrict__ exp_avg_sq) {
  for (int i = 0; i < count; ++i)
    adam_update(step, learning_rates[i], grad[i], param[i], exp_avg[i], exp_avg_sq[i]);
}

} // namespace

void adam(const AdamParams &params) {
  const AdamStep step = adam_step(params.step, params.beta1, params.beta2, params.epsilon);
  const int64_t total = params.rows * params.columns;
  parallel_for((total + block_size - 1) / block_size, [&](int64_t block) {
    const int64_t first = block * block_size;
    const int count = int(std::min<int64_t>(block_size, total - first));
    const float *grad = params.grad + first;
    float *param = params.param + first, *exp_avg = params.exp_avg + first,
          *exp_avg_sq = params.exp_avg_sq + first;
    if (!params.row_learning_rates) {
      adam_stage(step, params.learning_rate, grad, count, param, exp_avg, exp_avg_sq);
      return;
    }
    alignas(64) float learning_rates[block_size];
    int64_t row = first / params.columns, column = first % params.columns;
    for (int i = 0; i < count; ++i) {
      learning_rates[i] = params.row_learning_rates[row];
      if (++column == params.columns) {
        column = 0;
        ++row;
      }
    }
    adam_rows_stage(step, learning_rates, grad, count, param, exp_avg, exp_avg_sq);
  });
}

} // namespace ddpo3d_fast
