// One element's and one item's share of the diffusion arithmetic: noising, guidance, the clean guess, the
// DDIM step.
//
// Symbols: z latents, eps noise, abar = alphas_cumprod of the timestep, abar' = that of the next (cleaner)
// timestep. DDPM: Ho et al., arXiv 2006.11239. DDIM: Song et al., arXiv 2010.02502. CFG: Ho and Salimans,
// arXiv 2207.12598. v-prediction: Salimans and Ho, arXiv 2202.00512. SDS: Poole et al., arXiv 2209.14988.
// DDPO: arXiv 2305.13301. CSD: Yu et al., arXiv 2310.19415. NFSD: Katzir et al., arXiv 2310.17590. Rescaled
// guidance: Lin et al., arXiv 2305.08891.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ddpo3d_fast {

enum class PredictionType : int { epsilon = 0, v_prediction = 1, sample = 2 };

// z_t = sqrt(abar) z + sqrt(1 - abar) eps   (DDPM eq. 4). VJP: v_z = sqrt(abar) v_z_t.
struct NoiseLevel {
  float signal; // sqrt(abar)
  float noise;  // sqrt(1 - abar)
};

DDPO3D_HD NoiseLevel noise_level(float alpha_cumprod) {
  const double abar = alpha_cumprod;
  return {float(sqrt(abar)), float(sqrt(1.0 - abar))};
}

DDPO3D_HD float add_noise(const NoiseLevel &level, float z, float eps) {
  return level.signal * z + level.noise * eps;
}

// eps_u + s (eps_c - eps_u)   (CFG eq. 6, in the scale's usual form, where s = 1 is the conditional
// prediction).
DDPO3D_HD float guided_prediction(float conditional, float unconditional, float scale) {
  return unconditional + scale * (conditional - unconditional);
}

// Every prediction type is linear in (z_t, prediction), so an item has four coefficients and its elements no
// branch:
//   epsilon  eps^ = p                                  z0^ = (z_t - sqrt(1 - abar) p) / sqrt(abar)
//   v        eps^ = sqrt(1 - abar) z_t + sqrt(abar) p  z0^ = sqrt(abar) z_t - sqrt(1 - abar) p
//   sample   eps^ = (z_t - sqrt(abar) p) / sqrt(1 - abar)                               z0^ = p
// and, from a clean guess that was scaled or clipped, eps^ = (z_t - sqrt(abar) z0^) / sqrt(1 - abar).
// At abar = 1 there is no noise to tell: the quotient by sqrt(1 - abar) = 0 is defined as 0.
struct GuessCoefficients {
  float clean_from_noisy, clean_from_prediction;
  float noise_from_noisy, noise_from_prediction;
  float noise_from_noisy_clipped, noise_from_clean_clipped;
};

// `clean_scale` is a factor of z0^ (Lin et al., section 3.4), applied before the clip; where it is not 1 the
// noise must come from the clean guess, as where that is clipped.
DDPO3D_HD GuessCoefficients guess_coefficients(float alpha_cumprod, PredictionType type,
                                               float clean_scale = 1.f) {
  const double signal = sqrt(double(alpha_cumprod)), noise = sqrt(1.0 - double(alpha_cumprod));
  const double inverse_noise = noise > 0.0 ? 1.0 / noise : 0.0;
  GuessCoefficients c{};
  if (type == PredictionType::epsilon) {
    c.clean_from_noisy = float(1.0 / signal);
    c.clean_from_prediction = float(-noise / signal);
    c.noise_from_prediction = 1.f;
  } else if (type == PredictionType::v_prediction) {
    c.clean_from_noisy = float(signal);
    c.clean_from_prediction = float(-noise);
    c.noise_from_noisy = float(noise);
    c.noise_from_prediction = float(signal);
  } else {
    c.clean_from_prediction = 1.f;
    c.noise_from_noisy = float(inverse_noise);
    c.noise_from_prediction = float(-signal * inverse_noise);
  }
  c.clean_from_noisy *= clean_scale;
  c.clean_from_prediction *= clean_scale;
  c.noise_from_noisy_clipped = float(inverse_noise);
  c.noise_from_clean_clipped = float(-signal * inverse_noise);
  return c;
}

struct Guess {
  float clean; // z0^
  float noise; // eps^
};

DDPO3D_HD Guess guess(const GuessCoefficients &c, float noisy, float prediction) {
  return {c.clean_from_noisy * noisy + c.clean_from_prediction * prediction,
          c.noise_from_noisy * noisy + c.noise_from_prediction * prediction};
}

// A NaN guess stays NaN: both comparisons are false.
DDPO3D_HD Guess clipped_guess(const GuessCoefficients &c, float noisy, float prediction, float low,
                              float high) {
  const float clean = c.clean_from_noisy * noisy + c.clean_from_prediction * prediction;
  const float clipped = clean < low ? low : (clean > high ? high : clean);
  return {clipped, c.noise_from_noisy_clipped * noisy + c.noise_from_clean_clipped * clipped};
}

// The stochastic DDIM step, eq. 12 and 16 of the DDIM paper:
//   sigma^2 = eta^2 (1 - abar') / (1 - abar) (1 - abar / abar')
//   mu      = sqrt(abar') z0^ + sqrt(1 - abar' - sigma^2) eps^,     action = mu + sigma n,  n ~ N(0, 1)
// and the policy's log-density, summed over the d elements of an item (DDPO section 4.3; n = (action - mu) /
// sigma):
//   log pi = -1/2 sum n^2 - d (ln sigma + 1/2 ln 2 pi),     defined as 0 where sigma = 0 and action = mu.
struct DdimStep {
  float mean_from_clean; // sqrt(abar')
  float mean_from_noise; // sqrt(1 - abar' - sigma^2)
  float sigma;
  double log_normalizer; // ln sigma + 1/2 ln 2 pi, per element; 0 where sigma = 0
};

DDPO3D_HD DdimStep ddim_step(float alpha_cumprod, float prev_alpha_cumprod, float eta) {
  const double abar = alpha_cumprod, prev = prev_alpha_cumprod;
  const double variance =
      abar < 1.0 ? double(eta) * double(eta) * (1.0 - prev) / (1.0 - abar) * (1.0 - abar / prev) : 0.0;
  const double sigma = variance > 0.0 ? sqrt(variance) : 0.0;
  const double rest = 1.0 - prev - sigma * sigma;
  DdimStep step;
  step.mean_from_clean = float(sqrt(prev));
  step.mean_from_noise = float(rest > 0.0 ? sqrt(rest) : 0.0);
  step.sigma = float(sigma);
  step.log_normalizer = sigma > 0.0 ? log(sigma) + 0.91893853320467274178 : 0.0;
  return step;
}

DDPO3D_HD float ddim_mean(const DdimStep &step, const Guess &guess) {
  return step.mean_from_clean * guess.clean + step.mean_from_noise * guess.noise;
}

DDPO3D_HD float ddim_action(const DdimStep &step, float mean, float normal) {
  return mean + step.sigma * normal;
}

// log pi of an item from sum n^2 over its `dims` elements.
DDPO3D_HD float ddim_log_prob(const DdimStep &step, double sum_of_squares, int64_t dims) {
  return step.sigma > 0.f ? float(-0.5 * sum_of_squares - double(dims) * step.log_normalizer) : 0.f;
}

// Score of a latent from one action: SDS (DreamFusion eq. 3) and the policy gradient meet in the same sum,
//   w (eps^ - eps) - a n,     with a = lambda A sqrt(abar') / (K sigma) for the DDIM policy (0 for the noise
//   policy).
DDPO3D_HD float score_residual(float residual_weight, float guided_noise, float noise) {
  return residual_weight * (guided_noise - noise);
}

// A residual of predictions alone, without injected noise:
//   w (m_c eps_c + m_u eps_u + m_n eps_n),     eps_c, eps_u, eps_n for the prompt, no prompt, a negative one.
// CSD is m = (1, -1, 0); NFSD is (s, 1 - s, -1), and (s, 1 - s, 0) at small t. With eps = a z_t + b p
// (GuessCoefficients) and the total M = m_c + m_u + m_n it is
//   w M a z_t + w M b p_u + w m_c b (p_c - p_u) + w m_n b (p_n - p_u),
// whose differences are exact where the predictions are close, as those of one network are.
struct MixtureCoefficients {
  float noisy;         // of z_t
  float unconditional; // of p_u
  float conditional;   // of p_c - p_u
  float negative;      // of p_n - p_u
};

DDPO3D_HD MixtureCoefficients mixture_coefficients(const GuessCoefficients &guess, float residual_weight,
                                                   float conditional, float unconditional, float negative) {
  const double total = double(conditional) + double(unconditional) + double(negative);
  const double from_prediction = double(residual_weight) * double(guess.noise_from_prediction);
  return {float(double(residual_weight) * total * double(guess.noise_from_noisy)),
          float(from_prediction * total), float(from_prediction * double(conditional)),
          float(from_prediction * double(negative))};
}

DDPO3D_HD float mixed_residual(const MixtureCoefficients &c, float noisy, float conditional,
                               float unconditional, float negative) {
  return c.noisy * noisy + c.unconditional * unconditional + c.conditional * (conditional - unconditional) +
         c.negative * (negative - unconditional);
}

} // namespace ddpo3d_fast
