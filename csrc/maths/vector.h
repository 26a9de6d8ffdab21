// Three-vectors and 3x3 matrices, just as much as projection needs.
#pragma once

#include "host_device.h"

namespace ddpo3d_fast {

template <class T> struct Vec2 {
  T x, y;
};

template <class T> struct Vec3 {
  T x, y, z;
};

template <class T> struct Mat3 {
  Vec3<T> row[3];
};

template <class T> DDPO3D_HD Vec3<T> operator+(const Vec3<T> &a, const Vec3<T> &b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}

template <class T> DDPO3D_HD Vec3<T> operator-(const Vec3<T> &a, const Vec3<T> &b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}

template <class T> DDPO3D_HD Vec3<T> operator*(T s, const Vec3<T> &a) { return {s * a.x, s * a.y, s * a.z}; }

template <class T> DDPO3D_HD T dot(const Vec3<T> &a, const Vec3<T> &b) {
  return a.x * b.x + a.y * b.y + a.z * b.z;
}

template <class T> DDPO3D_HD Vec3<T> cross(const Vec3<T> &a, const Vec3<T> &b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

// M v
template <class T> DDPO3D_HD Vec3<T> multiply(const Mat3<T> &m, const Vec3<T> &v) {
  return {dot(m.row[0], v), dot(m.row[1], v), dot(m.row[2], v)};
}

// Mᵀ v
template <class T> DDPO3D_HD Vec3<T> multiply_transposed(const Mat3<T> &m, const Vec3<T> &v) {
  return v.x * m.row[0] + v.y * m.row[1] + v.z * m.row[2];
}

// M += a bᵀ
template <class T> DDPO3D_HD void add_outer(Mat3<T> &m, const Vec3<T> &a, const Vec3<T> &b) {
  m.row[0] = m.row[0] + a.x * b;
  m.row[1] = m.row[1] + a.y * b;
  m.row[2] = m.row[2] + a.z * b;
}

} // namespace ddpo3d_fast
