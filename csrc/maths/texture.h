// A texture at a point between its texels: bilinear, with the edges' texels beyond the edges, and the VJP's
// weights. Texel [row, column] has its centre at v = (row + 1/2) / height, u = (column + 1/2) / width, as in
// glTF 2.0 (3.8.1): v points down.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace ddpo3d_fast {

struct TexturePoint {
  int32_t column, row; // of the upper left one of four texels
  float right, down;   // how far on to the next ones, 0 to 1
};

// Sizes of 2 or more. What is not a number is 0.
DDPO3D_HD TexturePoint texture_point(float u, float v, int32_t width, int32_t height) {
  const auto place = [](float at, int32_t size, int32_t &first) {
    const float last = float(size - 1);
    float x = fma(at, float(size), -0.5f);
    x = x > 0 ? (x < last ? x : last) : 0.0f;
    first = int32_t(x) < size - 2 ? int32_t(x) : size - 2;
    return x - float(first);
  };
  TexturePoint p;
  p.right = place(u, width, p.column);
  p.down = place(v, height, p.row);
  return p;
}

// The point of a triangle's texture coordinates [3, 2] with these barycentric coordinates.
DDPO3D_HD TexturePoint texture_point(const float *corners, const float *barycentrics, int32_t width,
                                     int32_t height) {
  const float a = barycentrics[0], b = barycentrics[1], c = barycentrics[2];
  return texture_point(fma(c, corners[4], fma(b, corners[2], a * corners[0])),
                       fma(c, corners[5], fma(b, corners[3], a * corners[1])), width, height);
}

// What the texel `lower` rows down and `later` columns on counts for: the derivative of the sample by it.
DDPO3D_HD float texel_weight(const TexturePoint &p, int later, int lower) {
  return (later ? p.right : 1.0f - p.right) * (lower ? p.down : 1.0f - p.down);
}

} // namespace ddpo3d_fast
