// The kernel: a block marches down the rows of its piece, R at a time.
//
//   x, y  ->  ring of u, v  ->  horizontal filter  ->  cells  ->  vertical filter, SSIM and its partials, vertical
//   filter, in registers  ->  the same cells  ->  horizontal filter  ->  gradient, 10 rows behind the loads
//
// Filters commute, so the moments are filtered along rows first and the partials along columns first: then everything
// vertical happens in one thread, which owns a column and keeps its sums in registers, and needs no halo. For the
// horizontal filters a thread takes R pixels of one row instead.
#pragma once

#include "filter.cuh"
#include "piece.cuh"
#include "reduce.cuh"

namespace ssim {

// One instantiation of the kernel. Where `lean`, E is the type of the pixels, and there is no weight, no map, no other
// padding than "same" and no other form than kPlain; else all of that is decided while it runs.
template <class T_, class E_, bool separate_, int sides_, int rows_, bool lean_, int max_threads_, int min_blocks_>
struct MarchTraits {
  using T = T_;
  using E = E_;
  static constexpr bool separate = separate_, lean = lean_;
  static constexpr int sides = sides_;  // 0 no gradient, 1 of x, 2 of x and y
  static constexpr int rows = rows_;
  static constexpr int max_threads = max_threads_, min_blocks = min_blocks_;
  static constexpr int moments = separate ? 5 : 4;
  static constexpr int partials = sides == 0 ? 1 : sides == 1 ? 3 : moments;
  static constexpr int values = moments;
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T u, v;
};

template <class T>
struct alignas(16) TwoPairs {
  Pair<T> pair[2];
};

template <class T, int count>
struct alignas(count == 4 ? 16 : sizeof(T)) Cell {
  T v[count];
};

// x' = (x - low) * scale before anything else, for x and for y.
template <class T>
struct Rescale {
  T low[2], scale[2];
};

// Tables at the end of a block's shared memory; KernelShape::shared_bytes reserves 1024 T for them.
template <class T>
struct Tables {
  Rescale<T> rescale[kMaxThreads / kSegment];
  BorderTaps<T> vertical, horizontal;
};

template <class K>
class March {
  using T = typename K::T;
  using E = typename K::E;
  static constexpr int R = K::rows;
  static constexpr int kRing = 2 * R + 10;
  static constexpr int kCellRows = R + 1;  // one more than used: 8 neighbouring threads then hit different banks
  static constexpr int kReach = K::sides ? kRadius : 0;
  using Values = Cell<T, K::values>;
  static_assert(sizeof(Tables<T>) <= 1024 * sizeof(T), "KernelShape::shared_bytes reserves too little");

 public:
  SSIM_DEVICE March(const LaunchArgs<T>& launch, unsigned char* memory)
      : launch_(launch), piece_(launch, kReach), level_(launch.levels[piece_.level]) {
    const int threads = static_cast<int>(blockDim.x);
    ring_pitch_ = threads + 2 * kMargin + 2;
    ring_ = reinterpret_cast<Pair<T>*>(memory);
    cells_ = reinterpret_cast<Values*>(memory + kRing * ring_pitch_ * sizeof(Pair<T>));
    tables_ = reinterpret_cast<Tables<T>*>(memory + kRing * ring_pitch_ * sizeof(Pair<T>) +
                                           (threads + 2 * kMargin) * kCellRows * sizeof(Values));
    thread_ = static_cast<int>(threadIdx.x);
    task_row_ = thread_ % R;
    task_local_ = thread_ / R * R;
    mirror_ = !K::lean && launch.padding == Padding::kReflect;
    vectors_ = K::lean && level_.vectors;
    halo_ = level_.strips > 1 || mirror_;
  }

  SSIM_DEVICE void run() {
    prepare();
    const int chunks = (piece_.end_row - piece_.first_row + R - 1) / R;
    Pixels pixels;
    fetch(0, pixels);
    keep(0, pixels);
    __syncthreads();
    for (int chunk = 0; chunk < chunks; ++chunk) {
      horizontal_moments(chunk);
      if (K::sides && !vectors_ && chunk > 0) write_gradients(chunk - 1);
      __syncthreads();
      fetch(chunk + 1, pixels);
      vertical(chunk);
      keep(chunk + 1, pixels);
      __syncthreads();
      if (K::sides) {
        gradients(chunk);
        __syncthreads();
      }
    }
    if (K::sides && !vectors_) write_gradients(chunks - 1);
    if (launch_.arrived || level_.range_sums) finish();
  }

 private:
  SSIM_DEVICE int first_row(int chunk) const { return piece_.first_row + chunk * R; }

  SSIM_DEVICE Pair<T>* ring_row(int row) const {  // u, v of the block's column 0
    return ring_ + static_cast<unsigned>(row - piece_.first_row) % kRing * ring_pitch_ + kMargin;
  }

  SSIM_DEVICE Values* cells_of(int local) const { return cells_ + (local + kMargin) * kCellRows; }

  // Margins and gaps between maps stay zero from here on: nobody writes there.
  SSIM_DEVICE void prepare() {
    const int threads = static_cast<int>(blockDim.x);
    for (int i = thread_; i < kRing * ring_pitch_; i += threads) ring_[i] = {T(0), T(0)};
    for (int i = thread_; i < (threads + 2 * kMargin) * kCellRows; i += threads) {
#pragma unroll
      for (int n = 0; n < K::values; ++n) cells_[i].v[n] = T(0);
    }
    for (uint32_t map = threadIdx.x; map < piece_.maps; map += blockDim.x) tables_->rescale[map] = rescale_of(map);
    if (mirror_) {
      tables_->vertical.fill(launch_.taps, level_.h, false);
      tables_->horizontal.fill(launch_.taps, level_.w, true);
    }
    __syncthreads();
  }

  SSIM_DEVICE Rescale<T> rescale_of(uint32_t map) const {
    Rescale<T> r;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      r.low[side] = T(0), r.scale[side] = launch_.inverse_range;
      if (!level_.ranges) continue;
      const RangePair<T>& range = level_.ranges[(piece_.first_plane + map) / level_.planes_per_range];
      const T extent = range.high[side] - range.low[side];
      r.low[side] = range.low[side];
      r.scale[side] = extent < Limits<T>::smallest_normal ? T(0) : launch_.inverse_range / extent;
    }
    return r;
  }

  // ---- from x and y to the ring ----

  // R pixels of x and of y on their way to the ring: of one row where four at a time can be read, else of one column.
  struct Pixels {
    T x[R], y[R];
  };

  SSIM_DEVICE static T load(const View& view, int64_t offset) {
    if constexpr (K::lean)
      return static_cast<T>(static_cast<const E*>(view.data)[offset]);
    else
      return load_any<T>(view, offset);
  }

  SSIM_DEVICE int64_t offset_of(const View& view, uint32_t map, int row, int column) const {
    return plane_offset(view, level_, piece_.first_plane + map) + static_cast<int64_t>(row) * view.stride_h +
           static_cast<int64_t>(column) * view.stride_w;
  }

  // Where a column of the ring comes from. False where it stays zero.
  SSIM_DEVICE bool source(int local, Column& from) const {
    from = column_at(piece_, level_, local);
    if (mirror_) {
      if (level_.maps > 1 && from.column >= level_.slot - kRadius) ++from.map, from.column -= level_.slot;
      if (from.column < -kRadius || from.column >= level_.w + kRadius) return false;
      from.column = mirrored(from.column, level_.w);
    }
    return from.map < piece_.maps && from.column >= 0 && from.column < level_.w;
  }

  SSIM_DEVICE void fetch(int chunk, Pixels& pixels) const {
    if (vectors_)
      fetch_row(task_local_, first_row(chunk) + task_row_, pixels);
    else
      fetch_column(thread_, first_row(chunk), pixels);
  }

  SSIM_DEVICE void keep(int chunk, const Pixels& pixels) {
    if (vectors_)
      keep_row(task_local_, first_row(chunk) + task_row_, pixels);
    else
      keep_column(thread_, first_row(chunk), pixels);
    if (!halo_) return;
    Pixels more;
    if (vectors_) {
      if (thread_ >= 2 * kMargin) return;
      const int beyond = task_local_ < kMargin ? task_local_ - kMargin
                                               : static_cast<int>(blockDim.x) + task_local_ - kMargin;
      fetch_row(beyond, first_row(chunk) + task_row_, more);
      keep_row(beyond, first_row(chunk) + task_row_, more);
    } else {
      for (int i = thread_; i < 2 * kMargin; i += static_cast<int>(blockDim.x)) {
        const int beyond = i < kMargin ? i - kMargin : static_cast<int>(blockDim.x) + i - kMargin;
        fetch_column(beyond, first_row(chunk), more);
        keep_column(beyond, first_row(chunk), more);
      }
    }
  }

  SSIM_DEVICE void fetch_row(int local, int row, Pixels& pixels) const {
    if constexpr (K::lean) {
      const Column at = column_at(piece_, level_, local);
      if (row >= piece_.load_end || at.map >= piece_.maps) return;
      const E* x = static_cast<const E*>(level_.x.data) + offset_of(level_.x, at.map, row, at.column);
      const E* y = static_cast<const E*>(level_.y.data) + offset_of(level_.y, at.map, row, at.column);
#pragma unroll
      for (int j = 0; j < R; j += 4) {
        if (at.column + j < 0 || at.column + j >= level_.w) continue;
        const Four<E> four_x = *reinterpret_cast<const Four<E>*>(x + j);
        const Four<E> four_y = *reinterpret_cast<const Four<E>*>(y + j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          pixels.x[j + i] = static_cast<T>(four_x.v[i]);
          pixels.y[j + i] = static_cast<T>(four_y.v[i]);
        }
      }
    }
  }

  SSIM_DEVICE void keep_row(int local, int row, const Pixels& pixels) {
    const Column at = column_at(piece_, level_, local);
    if (row >= piece_.load_end || at.map >= piece_.maps) return;
    const bool sum_l1 = level_.value_l1 != 0 && row >= piece_.row0 && row < piece_.row1 && at.column >= piece_.col0;
    Pair<T>* to = ring_row(row) + local;
#pragma unroll
    for (int j = 0; j < R; j += 4) {
      if (at.column + j < 0 || at.column + j >= level_.w) continue;
#pragma unroll
      for (int i = j; i < j + 4; i += 2) {
        TwoPairs<T> two;
        two.pair[0] = rescaled(pixels.x[i], pixels.y[i], at.map);
        two.pair[1] = rescaled(pixels.x[i + 1], pixels.y[i + 1], at.map);
        *reinterpret_cast<TwoPairs<T>*>(to + i) = two;
        if (sum_l1 && at.column + j < piece_.col1) l1_sum_ += magnitude(two.pair[0].v) + magnitude(two.pair[1].v);
      }
    }
  }

  SSIM_DEVICE void fetch_column(int local, int first, Pixels& pixels) const {
    Column from;
    if (!source(local, from)) return;
    const int64_t x = offset_of(level_.x, from.map, 0, from.column);
    const int64_t y = offset_of(level_.y, from.map, 0, from.column);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      int row = first + j;
      if (row >= piece_.load_end) break;
      if (mirror_) row = mirrored(row, level_.h);
      pixels.x[j] = load(level_.x, x + row * level_.x.stride_h);
      pixels.y[j] = load(level_.y, y + row * level_.y.stride_h);
    }
  }

  SSIM_DEVICE void keep_column(int local, int first, const Pixels& pixels) {
    Column from;
    if (!source(local, from)) return;
    const Column at = column_at(piece_, level_, local);
    const bool own = level_.value_l1 != 0 && at.map < piece_.maps && at.column >= piece_.col0 &&
                     at.column < piece_.col1 && local >= 0 && local < static_cast<int>(blockDim.x);
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const int row = first + j;
      if (row >= piece_.load_end) break;
      const Pair<T> pair = rescaled(pixels.x[j], pixels.y[j], from.map);
      ring_row(row)[local] = pair;
      if (own && row >= piece_.row0 && row < piece_.row1)
        l1_sum_ += magnitude(pair.v) * seed_at(at.map, row, at.column);
    }
  }

  SSIM_DEVICE static T magnitude(T value) { return value < T(0) ? -value : value; }

  SSIM_DEVICE T seed_at(uint32_t map, int row, int column) const {
    if (K::lean || !level_.seed.data) return T(1);
    return load_any<T>(level_.seed, offset_of(level_.seed, map, row, column));
  }

  SSIM_DEVICE Pair<T> rescaled(T x, T y, uint32_t map) const {
    if (level_.ranges) {
      const Rescale<T> r = tables_->rescale[map];
      const T a = (x - r.low[0]) * r.scale[0], b = (y - r.low[1]) * r.scale[1];
      return {a + b, a - b};
    }
    const T a = x * launch_.inverse_range;
    return {a + y * launch_.inverse_range, a - y * launch_.inverse_range};
  }

  // ---- moments ----

  // Filters R pixels of one row of u, v and their products.
  SSIM_DEVICE void horizontal_moments(int chunk) const {
    const int row = first_row(chunk) + task_row_;
    const Column at = column_at(piece_, level_, task_local_);
    if (row >= piece_.load_end || at.map >= piece_.maps || at.column >= piece_.partial_col1 ||
        at.column + R <= piece_.partial_col0)
      return;
    // One pair more on each side than the window needs, for accesses of two.
    const TwoPairs<T>* from = reinterpret_cast<const TwoPairs<T>*>(ring_row(row) + task_local_ - kRadius - 1);
    T sums[R][K::moments];
#pragma unroll
    for (int j = 0; j < R + kTaps + 1; j += 2) {
      const TwoPairs<T> two = from[j / 2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (j + i == 0 || j + i > R + kTaps - 1) continue;
        const T u = two.pair[i].u, v = two.pair[i].v;
        T products[K::moments];
        products[0] = u, products[1] = v, products[2] = u * u, products[3] = v * v;
        if constexpr (K::separate) products[4] = u * v;
        accumulate(sums, products, j + i - 1);
      }
    }
#pragma unroll
    for (int o = 0; o < R; ++o) {
      Values cell;
#pragma unroll
      for (int n = 0; n < K::moments; ++n) cell.v[n] = sums[o][n];
      cells_of(task_local_ + o)[task_row_] = cell;
    }
  }

  // Adds pixel j of a row, counted from the first that R results need, to those that see it.
  template <int count>
  SSIM_DEVICE void accumulate(T (&sums)[R][count], const T (&pixel)[count], int j) const {
#pragma unroll
    for (int o = 0; o < R; ++o) {
      if (j < o || j >= o + kTaps) continue;
#pragma unroll
      for (int n = 0; n < count; ++n)
        sums[o][n] = j == o ? launch_.taps[0] * pixel[n] : sums[o][n] + launch_.taps[j - o] * pixel[n];
    }
  }

  // ---- SSIM and its partials ----

  SSIM_DEVICE void vertical(int chunk) {
    const Column at = column_at(piece_, level_, thread_);
    Values* cell = cells_of(thread_);
    if (at.map >= piece_.maps || at.column < piece_.partial_col0 || at.column >= piece_.partial_col1) {
      if (K::sides) {
#pragma unroll
        for (int j = 0; j < R; ++j)
#pragma unroll
          for (int n = 0; n < K::values; ++n) cell[j].v[n] = T(0);
      }
      return;
    }
    const bool own = at.column >= piece_.col0 && at.column < piece_.col1;
    const int first = first_row(chunk);
    T sum = T(0);
    // Rows whose SSIM is wanted and whose windows are full: nothing to ask for each.
    const bool inside = first - kRadius >= larger(piece_.partial_row0, piece_.row0) && first + R <= piece_.load_end &&
                        first + R - kRadius <= smaller(piece_.partial_row1, piece_.row1);
    if (K::lean && inside) {
#pragma unroll(K::lean ? R / 2 : 1)
      for (int j = 0; j < R; ++j) vertical_row<true>(cell[j], first + j, at, sum);
    } else {
#pragma unroll 1
      for (int j = 0; j < R; ++j) vertical_row<false>(cell[j], first + j, at, sum);
    }
    if (own) ssim_sum_ += sum;
  }

  // Takes row `row` of the moments from the cell, and leaves the filtered partials kTaps - 1 rows above there.
  template <bool inside>
  SSIM_DEVICE void vertical_row(Values& cell, int row, const Column& at, T& sum) {
    T m[K::moments];
    const int ssim_row = row - kRadius;
    if (inside || row < piece_.load_end) {
      const Values from = cell;
#pragma unroll
      for (int n = 0; n < K::moments; ++n) m[n] = from.v[n];
      moments_.push(m, launch_.taps);
    } else {
      moments_.push_zeros(m);
    }
    T partials[K::partials];
    const bool there = inside || (ssim_row >= piece_.partial_row0 && ssim_row < piece_.partial_row1);
    if (there) {
      const Pixel<T> pixel = ssim_of(m);
      if constexpr (K::sides == 1) {
        const Adjoint<T> a = adjoint_x<K::separate>(pixel);
        partials[0] = a.a, partials[1] = a.b, partials[2] = a.c;
      } else if constexpr (K::sides == 2) {
        partials[0] = pixel.d_u, partials[1] = pixel.d_v, partials[2] = pixel.d_uu, partials[3] = pixel.d_vv;
        if constexpr (K::separate) partials[4] = pixel.d_uv;
      }
      T value = pixel.value;
      const bool own_row = inside || (ssim_row >= piece_.row0 && ssim_row < piece_.row1);
      if constexpr (!K::lean) weigh(partials, value, at, ssim_row, own_row);
      if (own_row) sum += value;
    }
    if constexpr (K::sides != 0) {
      if (!there)
        partials_.push_zeros(partials);
      else if (mirror_ && BorderTaps<T>::near(ssim_row, level_.h))
        partials_.push(partials, tables_->vertical.of(ssim_row, level_.h));
      else
        partials_.push(partials, launch_.taps);
      Values to;
#pragma unroll
      for (int n = 0; n < K::values; ++n) to.v[n] = n < K::partials ? partials[n] : T(0);
      cell = to;
    }
  }

  SSIM_DEVICE Pixel<T> ssim_of(const T (&m)[K::moments]) const {
    if constexpr (K::separate) return separate_pixel(m[0], m[1], m[2], m[3], m[4], launch_.constants);
    if constexpr (K::lean) return paired_pixel<Form::kPlain>(m[0], m[1], m[2], m[3], launch_.constants);
    if (launch_.form == Form::kPlain) return paired_pixel<Form::kPlain>(m[0], m[1], m[2], m[3], launch_.constants);
    return paired_pixel<Form::kPaired>(m[0], m[1], m[2], m[3], launch_.constants);
  }

  SSIM_DEVICE void weigh(T (&partials)[K::partials], T& value, const Column& at, int row, bool own_row) {
    const bool own = own_row && at.column >= piece_.col0 && at.column < piece_.col1;
    const int map_row = row - launch_.margin, map_column = at.column - launch_.margin;
    if (own && level_.map.data) store_any(level_.map, offset_of(level_.map, at.map, map_row, map_column), value);
    const T seed = seed_at(at.map, map_row, map_column);
    if (own) seed_sum_ += seed;
    value *= seed;
    if constexpr (K::sides != 0) {
#pragma unroll
      for (int n = 0; n < K::partials; ++n) partials[n] *= seed;
    }
  }

  // ---- gradients ----

  // The gradient of R pixels of one row, 10 rows above the row of this thread.
  SSIM_DEVICE void gradients(int chunk) {
    const int row = first_row(chunk) + task_row_ - 2 * kRadius;
    const Column at = column_at(piece_, level_, task_local_);
    if (row < piece_.row0 || row >= piece_.row1 || at.map >= piece_.maps || at.column < piece_.col0 ||
        at.column >= piece_.col1)
      return;
    T sums[R][K::partials];
#pragma unroll
    for (int j = 0; j < R + kTaps - 1; ++j) {
      const Values from = cells_of(task_local_ - kRadius + j)[task_row_];
      T partials[K::partials];
#pragma unroll
      for (int n = 0; n < K::partials; ++n) partials[n] = from.v[n];
      accumulate(sums, partials, j);
    }
    if (mirror_) fold_columns(sums, at);

    Pair<T>* pairs = ring_row(row) + task_local_;
    const Rescale<T>& rescale = tables_->rescale[at.map];
    const T by_x = level_.slope * rescale.scale[0], by_y = level_.slope * rescale.scale[1];
    T gradient[R];
#pragma unroll
    for (int o = 0; o < R; ++o) {
      const Pair<T> pair = pairs[o];
      T l1 = T(0);
      if (level_.l1 != T(0)) {
        l1 = pair.v > T(0) ? level_.l1 : pair.v < T(0) ? -level_.l1 : pair.v * T(0);
        if (!K::lean && at.column + o < piece_.col1) l1 *= seed_at(at.map, row, at.column + o);
      }
      if constexpr (K::sides == 1) {
        gradient[o] = (sums[o][0] + pair.u * sums[o][1] + pair.v * sums[o][2]) * by_x + l1;
        if (!vectors_ && at.column + o < piece_.col1) pairs[o].u = gradient[o];
      } else {
        T of_u = sums[o][0] + pair.u * sums[o][2] * T(2), of_v = sums[o][1] + pair.v * sums[o][3] * T(2);
        if constexpr (K::separate) of_u += pair.v * sums[o][4], of_v += pair.u * sums[o][4];
        const T of_x = (of_u + of_v) * by_x + l1, of_y = (of_u - of_v) * by_y - l1;
        if (at.column + o < piece_.col1) {
          if (level_.range_sums) track(of_x, of_y, pair);
          pairs[o] = {of_x, of_y};
        }
      }
    }
    if constexpr (K::lean) {
      if (vectors_) write_row(gradient, at, row);
    }
  }

  // The horizontal filter's results near mirrored borders, anew with folded taps.
  SSIM_DEVICE void fold_columns(T (&sums)[R][K::partials], const Column& at) const {
#pragma unroll
    for (int o = 0; o < R; ++o) {
      const int column = at.column + o;
      if (column >= level_.w || !BorderTaps<T>::near(column, level_.w)) continue;
      const T* taps = tables_->horizontal.of(column, level_.w);
#pragma unroll
      for (int n = 0; n < K::partials; ++n) sums[o][n] = T(0);
      for (int k = 0; k < kTaps; ++k) {
        const Values from = cells_of(task_local_ + o + k - kRadius)[task_row_];
#pragma unroll
        for (int n = 0; n < K::partials; ++n) sums[o][n] += taps[k] * from.v[n];
      }
    }
  }

  SSIM_DEVICE void track(T of_x, T of_y, const Pair<T>& pair) {
    range_sums_[0] += of_x, range_sums_[1] += of_y;
    range_sums_[2] += of_x * (pair.u + pair.v) * T(0.5);
    range_sums_[3] += of_y * (pair.u - pair.v) * T(0.5);
  }

  SSIM_DEVICE void write_row(const T (&gradient)[R], const Column& at, int row) const {
    if constexpr (K::lean) {
      E* to = static_cast<E*>(level_.grad_x.data) + offset_of(level_.grad_x, at.map, row, at.column);
#pragma unroll
      for (int j = 0; j < R; j += 4) {
        if (at.column + j >= piece_.col1) continue;
        Four<E> four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.v[i] = static_cast<E>(gradient[j + i]);
        *reinterpret_cast<Four<E>*>(to + j) = four;
      }
    }
  }

  // Gradients that gradients() left in the ring, by columns: neighbouring threads write neighbouring pixels.
  SSIM_DEVICE void write_gradients(int chunk) const {
    const Column at = column_at(piece_, level_, thread_);
    if (at.map >= piece_.maps || at.column < piece_.col0 || at.column >= piece_.col1) return;
    const int first = first_row(chunk) - 2 * kRadius;
    for (int row = larger(first, piece_.row0); row < smaller(first + R, piece_.row1); ++row) {
      const Pair<T> pair = ring_row(row)[thread_];
      if constexpr (K::lean) {
        static_cast<E*>(level_.grad_x.data)[offset_of(level_.grad_x, at.map, row, at.column)] = static_cast<E>(pair.u);
      } else {
        if (level_.grad_x.data)
          store_any(level_.grad_x, offset_of(level_.grad_x, at.map, row, at.column), pair.u);
        if (level_.grad_y.data)
          store_any(level_.grad_y, offset_of(level_.grad_y, at.map, row, at.column), pair.v);
      }
    }
  }

  // ---- sums ----

  // Sums each map's threads in a fixed order, writes what the unit is worth, and adds up all units in the last block.
  SSIM_DEVICE void finish() {
    __syncthreads();  // cells and ring are free now
    const Column at = column_at(piece_, level_, thread_);
    const int relative = thread_ - static_cast<int>(at.map) * level_.slot;
    const int span = level_.maps == 1 ? static_cast<int>(blockDim.x) : level_.slot;
    // A task's thread number lies among the columns of its own map: its segment begins at a multiple of R.
    T sums[7] = {ssim_sum_, seed_sum_, l1_sum_, range_sums_[0], range_sums_[1], range_sums_[2], range_sums_[3]};
    T* memory = reinterpret_cast<T*>(ring_);
#pragma unroll
    for (int n = 0; n < 7; ++n)
      if (n < 3 || level_.range_sums) sums[n] = sum_span(memory, sums[n], relative, span);
    if (relative == 0 && at.map < piece_.maps) {
      const uint32_t unit = piece_.unit_of_first_plane + at.map * piece_.units_per_plane;
      if (level_.slots) {
        double seeds = sums[1];
        if (K::lean || !level_.seed.data)
          seeds = static_cast<double>(count_own(piece_.row0, piece_.row1, level_.h)) *
                  count_own(piece_.col0, piece_.col1, level_.w);
        level_.slots[unit] =
            level_.value_offset * seeds + level_.value_slope * sums[0] + level_.value_l1 * launch_.data_range * sums[2];
      }
      if (level_.range_sums) level_.range_sums[unit] = {{sums[3], sums[4]}, {sums[5], sums[6]}};
    }
    if (launch_.arrived) sum_slots(launch_, reinterpret_cast<double*>(memory));
  }

  // Pixels of the map among the piece's own, along one axis.
  SSIM_DEVICE int count_own(int begin, int end, int length) const {
    return larger(0, smaller(end, length - launch_.margin) - larger(begin, launch_.margin));
  }

  const LaunchArgs<T>& launch_;
  const Piece<T> piece_;
  const LevelArgs<T>& level_;
  Pair<T>* ring_;
  Values* cells_;
  Tables<T>* tables_;
  int ring_pitch_, thread_, task_row_, task_local_;
  bool mirror_, vectors_, halo_;
  ColumnFilter<T, K::moments> moments_;
  ColumnFilter<T, K::partials> partials_;
  T ssim_sum_ = T(0), seed_sum_ = T(0), l1_sum_ = T(0), range_sums_[4] = {T(0), T(0), T(0), T(0)};
};

template <class K>
__global__ void __launch_bounds__(K::max_threads, K::min_blocks)
    march(const __grid_constant__ LaunchArgs<typename K::T> launch) {
  SSIM_DYNAMIC_SHARED(memory);
  March<K>(launch, memory).run();
}

}  // namespace ssim
