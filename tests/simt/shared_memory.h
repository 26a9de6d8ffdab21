// The shared memory of a block: allocations by key, uninitialised, with guards between them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "sanitizer.h"
#include "simt/control.h"

namespace simt {

class SharedMemory {
public:
  static constexpr size_t max_allocations = 256;

  void clear() {
    ASAN_POISON_MEMORY_REGION(memory.get(), size_t(end - memory.get()));
    end = memory.get() + gap;
    allocations.clear();
    bytes = 0;
  }

  // Null if there is none of that key.
  void *find(const void *key) const {
    for (const Allocation &allocation : allocations)
      if (allocation.key == key)
        return allocation.address;
    return nullptr;
  }

  void *allocate(const void *key, size_t size, size_t alignment) {
    char *address = memory.get() + round_up(size_t(end - memory.get()), alignment);
    end = address + size + gap;
    bytes += size;
    ASAN_UNPOISON_MEMORY_REGION(address, size);
    std::fill_n(address, size, char(0xFF)); // a float of it is NaN, an index is out of range
    allocations.push_back({key, address});
    return address;
  }

  size_t used() const { return bytes; }
  size_t count() const { return allocations.size(); }

private:
  struct Allocation {
    const void *key;
    void *address;
  };
  static constexpr size_t gap = 64; // bytes between allocations, which nobody may touch
  static constexpr size_t capacity = max_shared_bytes + (max_allocations + 1) * 2 * gap;
  struct Free {
    void operator()(char *memory) const { ::operator delete(memory, std::align_val_t(128)); }
  };

  static size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
  }

  std::unique_ptr<char, Free> memory{static_cast<char *>(::operator new(capacity, std::align_val_t(128)))};
  char *end = memory.get() + capacity;
  size_t bytes = 0;
  std::vector<Allocation> allocations;
};

} // namespace simt
