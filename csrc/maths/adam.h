// Adam: Kingma and Ba, arXiv 1412.6980, algorithm 1, in torch.optim.Adam's arrangement of it.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ddpo3d_fast {

// What is the same for every element of a step.
struct AdamStep {
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float epsilon;
  float inverse_bias1;      // 1 / (1 - beta1^t)
  float inverse_sqrt_bias2; // 1 / sqrt(1 - beta2^t)
};

DDPO3D_HD AdamStep adam_step(int64_t step, double beta1, double beta2, double epsilon) {
  AdamStep s;
  s.beta1 = float(beta1);
  s.one_minus_beta1 = float(1.0 - beta1);
  s.beta2 = float(beta2);
  s.one_minus_beta2 = float(1.0 - beta2);
  s.epsilon = float(epsilon);
  s.inverse_bias1 = float(1.0 / (1.0 - pow(beta1, double(step))));
  s.inverse_sqrt_bias2 = float(1.0 / sqrt(1.0 - pow(beta2, double(step))));
  return s;
}

// m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,
// p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
// A gradient that is NaN, infinite, or so large that its square is, counts as 0: it would stay in v for ever.
DDPO3D_HD void adam_update(const AdamStep &s, float learning_rate, float grad, float &param, float &exp_avg,
                           float &exp_avg_sq) {
  const float g = grad * grad <= FLT_MAX ? grad : 0.f;
  exp_avg = s.beta1 * exp_avg + s.one_minus_beta1 * g;
  exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * (g * g);
  param -= learning_rate * s.inverse_bias1 * exp_avg / (sqrtf(exp_avg_sq) * s.inverse_sqrt_bias2 + s.epsilon);
}

} // namespace ddpo3d_fast
