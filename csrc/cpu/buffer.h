// Scratch memory: arrays that are not initialised, and objects that are used again.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace ddpo3d_fast {

// An array aligned to cache lines that keeps its memory when it shrinks.
template <class T> class Buffer {
  static_assert(std::is_trivially_copyable<T>::value, "elements are neither constructed nor destroyed");

public:
  Buffer() = default;
  ~Buffer() { std::free(items); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  Buffer(Buffer &&other) noexcept
      : items(std::exchange(other.items, nullptr)), capacity(std::exchange(other.capacity, 0)) {}

  // Room for `count` elements; what was there is lost.
  T *resize(size_t count) {
    if (count > capacity) {
      std::free(items);
      items = nullptr;
      capacity = 0;
      const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
      items = static_cast<T *>(std::aligned_alloc(64, bytes));
      if (!items)
        throw std::bad_alloc();
      capacity = count;
    }
    return items;
  }

  T *data() const { return items; }
  T &operator[](size_t i) const { return items[i]; }
  size_t bytes() const { return capacity * sizeof(T); }

private:
  T *items = nullptr;
  size_t capacity = 0;
};

// A scratch object that keeps its memory for the next who needs one: fresh pages cost more than the work done
// on them. T has a bytes(). At most four wait for use; what is larger than 256 MiB goes back to the system.
template <class T> class Recycled {
public:
  Recycled() {
    std::lock_guard<std::mutex> lock(shelf().mutex);
    if (!shelf().items.empty()) {
      object = std::move(shelf().items.back());
      shelf().items.pop_back();
    } else {
      object.reset(new T);
    }
  }

  ~Recycled() {
    if (!object || object->bytes() > (size_t(256) << 20))
      return;
    std::lock_guard<std::mutex> lock(shelf().mutex);
    if (shelf().items.size() < 4)
      shelf().items.push_back(std::move(object));
  }

  Recycled(const Recycled &) = delete;
  Recycled &operator=(const Recycled &) = delete;

  T &operator*() const { return *object; }
  T *operator->() const { return object.get(); }

private:
  struct Shelf {
    std::mutex mutex;
    std::vector<std::unique_ptr<T>> items;
    Shelf() { items.reserve(4); }
  };
  static Shelf &shelf() {
    static Shelf *const one = new Shelf; // outlives every static object
    return *one;
  }

  std::unique_ptr<T> object;
};

} // namespace ddpo3d_fast
