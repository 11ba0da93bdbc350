// From x and y in global memory to the ring of u and v.
#pragma once

#include "block.cuh"

namespace ssim {

// Where all rows of x, y and the gradient allow it, a thread takes R pixels of one row, four at a time, and has them on
// their way while the chunk before is computed. Else threads take columns.
template <class K>
class Loads {
  using T = typename K::T;
  using E = typename K::E;
  static constexpr int R = K::rows;

 public:
  SSIM_DEVICE explicit Loads(const Block<K>& block) : b_(block) {
    vectors = K::lean && b_.level.vectors;
    halo_ = b_.level.strips > 1 || b_.mirror;
    if constexpr (K::lean) {
      if (vectors) own_ = row_at(b_.thread / R * R);
    }
  }

  // R pixels of x and y, on their way.
  struct Vectors {
    Four<E> x[R / 4], y[R / 4];
  };
  struct Nothing {};
  using Pixels = std::conditional_t<K::lean, Vectors, Nothing>;

  bool vectors;

  // Takes the rows of a chunk from global memory. Chunks must come one after the other.
  SSIM_DEVICE void fetch(int chunk, Pixels& pixels) const {
    if constexpr (K::lean) {
      if (vectors && b_.first_row(chunk) + b_.thread % R < b_.piece.load_end) fetch_row(own_, pixels);
    }
  }

  // Puts them into the ring.
  SSIM_DEVICE void keep(int chunk, const Pixels& pixels) {
    if constexpr (K::lean) {
      if (vectors) {
        keep_row(own_, pixels, chunk);
        own_.x += R * b_.level.x.stride_h, own_.y += R * b_.level.y.stride_h;
        if (halo_ && b_.thread < 2 * kMargin) keep_halo(chunk);
        return;
      }
    }
    const int beyond = halo_ ? kMargin : 0;
    for (int local = b_.thread - beyond; local < b_.threads + beyond; local += b_.threads) load_column(local, chunk);
  }

  T l1_sum = T(0);  // of |v| over the pixels that are this block's own

 private:
  // A thread's pixels of a row.
  struct Row {
    const E *x, *y;
    int local, map;
    int end;  // how many of its R pixels the map has
    bool own;
  };

  SSIM_DEVICE Row row_at(int local) const {
    const Column at = column_at(b_.piece, b_.level, local);
    Row row;
    row.local = local, row.map = static_cast<int>(at.map);
    const bool there = at.map < b_.piece.maps && at.column >= 0;
    row.end = there ? smaller(R, b_.level.w - at.column) : 0;
    row.own = at.column >= b_.piece.col0 && at.column < b_.piece.col1;
    const int first = b_.piece.first_row + b_.thread % R;
    row.x = static_cast<const E*>(b_.args.x.data) + b_.offset_of(b_.args.x, at.map, first, at.column);
    row.y = static_cast<const E*>(b_.args.y.data) + b_.offset_of(b_.args.y, at.map, first, at.column);
    return row;
  }

  SSIM_DEVICE void fetch_row(const Row& row, Pixels& pixels) const {
#pragma unroll
    for (int j = 0; j < R; j += 4) {
      if (j >= row.end) continue;
      pixels.x[j / 4] = *reinterpret_cast<const Four<E>*>(row.x + j);
      pixels.y[j / 4] = *reinterpret_cast<const Four<E>*>(row.y + j);
    }
  }

  SSIM_DEVICE void keep_row(const Row& at, const Pixels& pixels, int chunk) {
    const int row = b_.first_row(chunk) + b_.thread % R;
    if (row >= b_.piece.load_end) return;
    const bool sum_l1 = b_.level.value_l1 != 0 && at.own && row >= b_.piece.row0 && row < b_.piece.row1;
    Pair<T>* to = b_.ring_row(row) + at.local;
#pragma unroll
    for (int j = 0; j < R; j += 4) {
      if (j >= at.end) continue;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        TwoPairs<T> two;
        two.pair[0] = rescaled(static_cast<T>(pixels.x[j / 4].v[i]), static_cast<T>(pixels.y[j / 4].v[i]), at.map);
        two.pair[1] =
            rescaled(static_cast<T>(pixels.x[j / 4].v[i + 1]), static_cast<T>(pixels.y[j / 4].v[i + 1]), at.map);
        *reinterpret_cast<TwoPairs<T>*>(to + j + i) = two;
        if (sum_l1) l1_sum += magnitude(two.pair[0].v) + magnitude(two.pair[1].v);
      }
    }
  }

  // What strips need of their neighbours.
  SSIM_DEVICE void keep_halo(int chunk) {
    const int local = b_.thread / R * R;
    Row row = row_at(local < kMargin ? local - kMargin : b_.threads + local - kMargin);
    row.own = false;
    if (b_.first_row(chunk) + b_.thread % R >= b_.piece.load_end) return;
    row.x += static_cast<int64_t>(chunk) * R * b_.level.x.stride_h;
    row.y += static_cast<int64_t>(chunk) * R * b_.level.y.stride_h;
    Pixels pixels{};
    fetch_row(row, pixels);
    keep_row(row, pixels, chunk);
  }

  // Where a column of the ring comes from. False where it stays zero.
  SSIM_DEVICE bool source(int local, Column& from) const {
    from = column_at(b_.piece, b_.level, local);
    if (b_.mirror) {
      if (b_.level.maps > 1 && from.column >= b_.level.slot - kRadius) ++from.map, from.column -= b_.level.slot;
      if (from.column < -kRadius || from.column >= b_.level.w + kRadius) return false;
      from.column = mirrored(from.column, b_.level.w);
    }
    return from.map < b_.piece.maps && from.column >= 0 && from.column < b_.level.w;
  }

  SSIM_DEVICE void load_column(int local, int chunk) {
    Column from;
    if (!source(local, from)) return;
    const Column at = column_at(b_.piece, b_.level, local);
    const bool own = b_.level.value_l1 != 0 && at.column >= b_.piece.col0 && at.column < b_.piece.col1 && local >= 0 &&
                     local < b_.threads;
    const int64_t x = b_.offset_of(b_.args.x, from.map, 0, from.column);
    const int64_t y = b_.offset_of(b_.args.y, from.map, 0, from.column);
    const int first = b_.first_row(chunk), end = smaller(first + R, b_.piece.load_end);
#pragma unroll 1
    for (int row = first; row < end; ++row) {
      const int64_t source_row = b_.mirror ? mirrored(row, b_.level.h) : row;
      const Pair<T> pair = rescaled(load(b_.args.x, x + source_row * b_.args.x.stride_h),
                                    load(b_.args.y, y + source_row * b_.args.y.stride_h), from.map);
      b_.ring_row(row)[local] = pair;
      if (own && row >= b_.piece.row0 && row < b_.piece.row1)
        l1_sum += magnitude(pair.v) * b_.seed_at(at.map, row, at.column);
    }
  }

  SSIM_DEVICE static T load(const View& view, int64_t offset) {
    if constexpr (K::lean)
      return static_cast<T>(static_cast<const E*>(view.data)[offset]);
    else
      return load_any<T>(view, offset);
  }

  SSIM_DEVICE static T magnitude(T value) { return value < T(0) ? -value : value; }

  SSIM_DEVICE Pair<T> rescaled(T x, T y, uint32_t map) const {
    if (b_.level.ranges) {
      const Rescale<T> r = b_.tables->rescale[map];
      const T a = (x - r.low[0]) * r.scale[0], b = (y - r.low[1]) * r.scale[1];
      return {a + b, a - b};
    }
    const T a = x * b_.launch.inverse_range;
    return {a + y * b_.launch.inverse_range, a - y * b_.launch.inverse_range};
  }

  const Block<K>& b_;
  bool halo_;
  std::conditional_t<K::lean, Row, Nothing> own_;
};

}  // namespace ssim
