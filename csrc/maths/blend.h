// One Gaussian over one pixel: its footprint, its alpha, one step of front-to-back compositing, and the VJPs.
// Source: 3D Gaussian Splatting (Kerbl et al. 2023), eq. 3; EWA splatting (Zwicker et al. 2002), eq. 10; the
// anti-aliasing factor: Mip-Splatting (Yu et al. 2024), eq. 10.
//
// The pixel functions take a number type F: float on a GPU, a vector of pixels on a CPU. F brings min, max,
// fma, exp2_fast, reciprocal and select; scalar.h has them for float.
#pragma once

#include <cmath>

#include "scalar.h"
#include "vector.h"

namespace ddpo3d_fast {

constexpr double kAlphaCut = 1.0 / 255;              // what hides less is skipped
constexpr double kLog2AlphaCut = -7.994353436858858; // log2(1/255)
constexpr double kLn2 = 0.6931471805599453;

// A Gaussian on the image as blending wants it. u = W (pixel - mean) whitens its covariance and folds in the
// change to base 2: alpha = opacity 2^-|u|², with W = [w11 w12; 0 w22] and WᵀW = log2(e)/2 Σ⁻¹. Squares of u
// lose no digits where the quadratic form of the inverse covariance would (needles).
template <class T> struct Footprint {
  T w11, w12, w22;
  T xx, xy, yy;       // the dilated covariance, px²
  T det, dilated_det; // determinants of the covariance before and after dilation
  T reach;            // pixels with dᵀΣ⁻¹d > reach are below the cut: 2 ln(255 opacity); ≤ 0 if all are
  T opacity;          // after the anti-aliasing factor
  T opacity_factor;   // √(det Σ / det Σ_dilated) if antialiased, else 1
};

// What makes every Gaussian cover a pixel, and what that does to its opacity.
template <class T> struct Dilation {
  T eps2d;          // px², added to both diagonals of the covariance
  bool antialiased; // multiply the opacity by √(det Σ / det Σ_dilated)
  T factor_min;     // but by no less
};

template <class T>
DDPO3D_HD Footprint<T> footprint(T xx, T xy, T yy, T det, T opacity, const Dilation<T> &dilation) {
  const T eps2d = dilation.eps2d;
  Footprint<T> out;
  out.xx = xx + eps2d;
  out.xy = xy;
  out.yy = yy + eps2d;
  out.det = det;
  // det(Σ + cI) = det Σ + c tr Σ + c², a sum of positive terms.
  out.dilated_det = det + eps2d * (xx + yy) + eps2d * eps2d;
  out.opacity_factor = dilation.antialiased ? std::sqrt(det / out.dilated_det) : T(1);
  if (dilation.antialiased && out.opacity_factor < dilation.factor_min)
    out.opacity_factor = dilation.factor_min;
  out.opacity = opacity * out.opacity_factor;
  out.reach = out.opacity > T(kAlphaCut) ? T(2) * std::log(out.opacity * T(255)) : T(0);
  const T k = T(0.8493218002880191); // √(log2(e)/2)
  out.w11 = k * std::sqrt(out.yy / out.dilated_det);
  out.w12 = -out.w11 * out.xy / out.yy;
  out.w22 = k / std::sqrt(out.yy);
  return out;
}

// What blending hands back for one Gaussian: sums over its pixels of v = d(loss)/d(ln alpha), and of v times
// the whitened offsets.
template <class T> struct Moments {
  T v, u1, u2, u11, u12, u22; // Σ v, Σ v u1, Σ v u2, Σ v u1², Σ v u1 u2, Σ v u2²
};

template <class T> struct FootprintGradient {
  Vec2<T> v_mean;     // pixels
  T v_xx, v_xy, v_yy; // of the covariance before dilation; v_xy of the one number both off-diagonals share
  T v_opacity;        // before the anti-aliasing factor
};

// ln alpha = ln opacity - ln2 |u|² with u = W (pixel - mean), so
// d/d(mean) = 2 ln2 Wᵀu and d/dΣ = ½ Σ⁻¹ d dᵀ Σ⁻¹ = 2 ln2² Wᵀ u uᵀ W.
template <class T>
DDPO3D_HD FootprintGradient<T> footprint_vjp(const Footprint<T> &f, T opacity, const Dilation<T> &dilation,
                                             const Moments<T> &m) {
  FootprintGradient<T> out;
  const T c1 = T(2 * kLn2), c2 = T(2 * kLn2 * kLn2);
  out.v_mean = {c1 * f.w11 * m.u1, c1 * (f.w12 * m.u1 + f.w22 * m.u2)};
  out.v_xx = c2 * f.w11 * f.w11 * m.u11;
  out.v_xy = T(2) * c2 * f.w11 * (f.w12 * m.u11 + f.w22 * m.u12);
  out.v_yy = c2 * (f.w12 * f.w12 * m.u11 + T(2) * f.w12 * f.w22 * m.u12 + f.w22 * f.w22 * m.u22);
  out.v_opacity = m.v / opacity;
  if (dilation.antialiased && f.opacity_factor > dilation.factor_min) {
    // ln factor = ½ ln det Σ - ½ ln det Σ_dilated, and m.v is the gradient of ln opacity.
    const T xx = f.xx - dilation.eps2d, yy = f.yy - dilation.eps2d;
    const T half = T(0.5) * m.v;
    out.v_xx += half * (yy / f.det - f.yy / f.dilated_det);
    out.v_yy += half * (xx / f.det - f.xx / f.dilated_det);
    out.v_xy += T(2) * half * f.xy * (T(1) / f.dilated_det - T(1) / f.det);
  }
  return out;
}

// A Gaussian as one tile sees it: the whitened offset of the tile's centre is taken in the wider type before,
// so that single precision is enough for the pixels.
struct Splat {
  float w11, w12, w22;
  float u1, u2; // W (tile centre - mean)
  float log2_opacity;
  float red, green, blue, depth;
};

template <class F> struct Falloff {
  F u1, u2;     // whitened offset of the pixel
  F log2_alpha; // before clamping
};

// (x, y): the pixel's centre from the tile's centre, px.
template <class F> DDPO3D_HD Falloff<F> falloff(const Splat &s, F x, F y) {
  Falloff<F> out;
  out.u1 = fma(F(s.w11), x, fma(F(s.w12), y, F(s.u1)));
  out.u2 = fma(F(s.w22), y, F(s.u2));
  out.log2_alpha = fnma(out.u1, out.u1, fnma(out.u2, out.u2, F(s.log2_opacity)));
  return out;
}

// Front to back: what the pixel takes of the Gaussian's colour, and what it lets through.
template <class F> struct Composite {
  F weight;        // alpha T
  F transmittance; // T (1 - alpha)
};

template <class F> DDPO3D_HD Composite<F> composite(F alpha, F transmittance) {
  return {alpha * transmittance, fnma(alpha, transmittance, transmittance)};
}

template <class F> struct CompositeGradient {
  F transmittance; // before this Gaussian
  F weight;        // alpha T
  F behind;        // the loss's slope along what a ray meets from this Gaussian on, this one included
  F v_log_alpha;   // d(loss)/d(ln alpha)
};

// VJP of composite, back to front: T after the Gaussian, `behind` the slope along what lies behind it (the
// background at first), `slope` d(loss)/d(pixel) · (the Gaussian's colour, 1 for alpha, depth).
template <class F>
DDPO3D_HD CompositeGradient<F> composite_vjp(F alpha, F transmittance_after, F behind, F slope) {
  CompositeGradient<F> out;
  out.transmittance = transmittance_after * reciprocal(F(1.0f) - alpha);
  out.weight = alpha * out.transmittance;
  const F difference = slope - behind;
  out.behind = fma(alpha, difference, behind);
  out.v_log_alpha = out.weight * difference;
  return out;
}

} // namespace ddpo3d_fast
