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

} // namespace ddpo3d_fast
