// The bands of a unit, one for each lane, and tensors as they see them. Included once for each instruction set.
#pragma once

#include <type_traits>

#include "filters.h"
#include "rows_kernel.h"
#include "unit.h"

namespace ssim {
inline namespace SSIM_ISA {

// Which lanes' bands have a pixel in a row; the mask counts where it is some and not all.
template <class T>
struct Rows {
  bool any, all;
  typename Simd<T>::Mask mask;

  bool has(int lane) const { return all || mask[lane]; }
};

// Unit::bands, where lanes that are not in use repeat the first. Rows are counted from each band's row0.
template <class T>
struct Bands {
  using Mask = typename Simd<T>::Mask;
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static constexpr int lanes = kLanes<T>;

  int count;                // lanes in use
  int64_t height;           // of the planes
  int64_t lowest, highest;  // row0 of all bands
  Band band[lanes];
  Mask row0;

  Bands(const Unit& unit, int64_t height) : count(unit.count), height(height) {
    lowest = highest = unit.bands[0].row0;
    for (int i = 0; i < lanes; ++i) {
      band[i] = unit.bands[i < count ? i : 0];
      row0[i] = static_cast<Integer>(band[i].row0);
      lowest = smaller(lowest, band[i].row0), highest = larger(highest, band[i].row0);
    }
  }

  // Row `row` of each band: whether it is in the plane, `margin` rows from its ends.
  Rows<T> rows(int64_t row, int64_t margin) const {
    if (lowest == highest) {
      const bool inside = lowest + row >= margin && lowest + row < height - margin;
      return {inside, inside, Mask{}};
    }
    const Mask at = row0 + static_cast<Integer>(row);
    Rows<T> r{false, true, Mask((at >= static_cast<Integer>(margin)) & (at < static_cast<Integer>(height - margin)))};
    for (int i = 0; i < lanes; ++i) r.any |= r.mask[i] != 0, r.all &= r.mask[i] != 0;
    return r;
  }
};

constexpr int64_t kCacheStride = 4096;  // bytes from a line to the next in the same place of the first cache
constexpr int kCacheWays = 8;           // lines that such a place holds: of x and y together, so those of four bands
constexpr int64_t kFar = 1 << 16;       // bytes between bands from which on copying their rows pays

// A tensor, and where row0 of each lane's band begins in it.
template <class T>
struct BandTensor {
  static constexpr int lanes = kLanes<T>;

  const View* view;
  bool dense;     // its rows need no conversion
  bool in_place;  // nor a copy, as where rows of several bands drive each other out of the first cache
  int64_t start[lanes];

  BandTensor() = default;
  BandTensor(const Bands<T>& bands, const View& v)
      : view(&v), dense(v.dtype == (sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64) && v.stride_w == 1) {
    for (int i = 0; i < lanes; ++i) {
      const Band& band = bands.band[i];
      start[i] = band.n * v.stride_n + band.c * v.stride_c + band.row0 * v.stride_h;
    }
    // Short distances are of small planes, which cost less in place.
    const auto distance = [&](int i) { return (start[i] - start[0]) * static_cast<int64_t>(sizeof(T)); };
    bool crowded = 2 * bands.count > kCacheWays && distance(1) >= kFar;
    for (int i = 1; i < bands.count; ++i) crowded &= distance(i) % kCacheStride == 0;
    in_place = dense && !crowded;
  }
};

// Reads and writes rows of tensors, in place, or through `scratch`, two rows of kSpan for each lane.
template <class T>
struct BandAccess {
  static constexpr int lanes = kLanes<T>;

  const Bands<T>& bands;
  const RowAccess<T>& rows;
  T* scratch;

  // Reads `count` columns of tensors with planes of `height` rows, from (row0 + row, column) on, or of the nearest row
  // of the plane, and calls put(column, vectors) for each, of some twice.
  template <int tensors, class Put>
  SSIM_INLINE void read(const BandTensor<T>* const (&tensor)[tensors], int64_t row, int64_t height, int64_t column,
                        int64_t count, const Put& put) const {
    static_assert(tensors <= 2);
    const bool inside = bands.lowest + row >= 0 && bands.highest + row < height;
    const T* from[tensors][lanes];
    for (int t = 0; t < tensors; ++t) {
      const View& view = *tensor[t]->view;
      if (inside && tensor[t]->in_place) {  // nearly always, and not even a product for each lane
        const T* const data = static_cast<const T*>(view.data) + row * view.stride_h + column * view.stride_w;
        for (int i = 0; i < lanes; ++i) from[t][i] = data + tensor[t]->start[i];
        continue;
      }
      for (int i = 0; i < lanes; ++i) {
        const int64_t row0 = bands.band[i].row0, at = larger(0, smaller(row0 + row, height - 1)) - row0;
        const int64_t offset = tensor[t]->start[i] + at * view.stride_h + column * view.stride_w;
        if (tensor[t]->in_place) {
          from[t][i] = static_cast<const T*>(view.data) + offset;
          continue;
        }
        T* const copy = scratch + (t * lanes + i) * kSpan;
        rows.load(copy, view, offset, count);
        from[t][i] = copy;
      }
    }
    gather<T, tensors>(from, count, put);
  }

  // Writes `count` vectors, `stride` vectors apart, to a tensor at (row0 + row, column), as far as bands have that row.
  void write(const BandTensor<T>& tensor, int64_t row, const Rows<T>& inside, int64_t column, int64_t count,
             const T* values, int64_t stride) const {
    const View& view = *tensor.view;
    const int64_t offset = row * view.stride_h + column * view.stride_w;
    T* to[lanes];
    for (int i = 0; i < lanes; ++i) {
      const bool there = tensor.in_place && i < bands.count && inside.has(i);
      to[i] = there ? static_cast<T*>(view.data) + tensor.start[i] + offset : scratch + i * kSpan;
    }
    scatter(values, stride, count, to);
    if (tensor.in_place) return;
    for (int i = 0; i < bands.count; ++i)
      if (inside.has(i)) rows.store(to[i], view, tensor.start[i] + offset, count);
  }
};

// Rows of a tensor on their way into the second cache, a few lines at a time while something else is computed: of all
// at once, most would wait for the first ones. The first cache has no room for them: there they would drive out what
// the filters work on, and be gone before they are used.
template <class T>
class Fetch {
 public:
  // Rows [row, end) of every band, in so many parts.
  Fetch(const BandTensor<T>& tensor, int64_t row, int64_t end, int64_t column, int64_t count, int64_t parts)
      : from_(static_cast<const T*>(tensor.view->data) + column),
        start_(tensor.start),
        stride_(tensor.view->stride_h),
        row_(row),
        count_(count),
        left_(tensor.dense && end > row ? (end - row) * kLanes<T> : 0),
        each_((left_ + parts - 1) / parts) {}

  void some() {
    const int64_t n = smaller(each_, left_);
    left_ -= n;
    for (int64_t i = 0; i < n; ++i) {
      const T* const row = from_ + start_[lane_] + row_ * stride_;
      for (int64_t j = 0; j < count_ + kLine; j += kLine) __builtin_prefetch(row + j, 0, 2);
      if (++lane_ == kLanes<T>) lane_ = 0, ++row_;
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(T);
  const T* const from_;
  const int64_t* const start_;
  const int64_t stride_;
  int64_t row_;
  const int64_t count_;
  int64_t left_;
  const int64_t each_;
  int lane_ = 0;
};

}  // namespace SSIM_ISA
}  // namespace ssim
