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
#include "loads.cuh"

namespace ssim {

template <class K>
class March {
  using T = typename K::T;
  using E = typename K::E;
  static constexpr int R = K::rows;
  using Values = typename Block<K>::Values;

 public:
  SSIM_DEVICE explicit March(const Block<K>& block) : b_(block), is_(roles_of(block)), loads_(block, is_) {}

  SSIM_DEVICE void run() {
    if (K::lean && b_.level.vectors)
      march<K::lean>();
    else
      march<false>();
    if (b_.launch.arrived || (K::tracks && b_.args.range_sums)) finish();
  }

 private:
  // `vectors`: x, y and the gradient go four pixels at a time.
  template <bool vectors>
  SSIM_DEVICE void march() {
    const int chunks = (b_.piece.end_row - b_.piece.first_row + R - 1) / R;
    {
      typename Loads<K>::Pixels pixels;
      loads_.template fetch<vectors>(0, pixels);
      loads_.template keep<vectors>(0, pixels);
    }
    __syncthreads();
    if (b_.mirror) {
      loads_.mirror(0);
      __syncthreads();
    }
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      Seeds seeds;
      if constexpr (!K::lean) fetch_seeds(chunk, seeds);
      if (is_(kFiltersRow)) horizontal_moments(chunk);
      if constexpr (!K::lean) keep_seeds(seeds);
      if (K::sides && !vectors && is_(kOwnsColumn) && chunk > 0) write_gradients(chunk - 1);
      __syncthreads();
      typename Loads<K>::Pixels pixels;  // on their way meanwhile
      loads_.template fetch<vectors>(chunk + 1, pixels);
      vertical(chunk);
      loads_.template keep<vectors>(chunk + 1, pixels);
      if (K::sides && b_.mirror && is_(kMirrorsColumn)) mirror_cells();
      __syncthreads();
      if (K::sides || b_.mirror) {
        if (b_.mirror) loads_.mirror(chunk + 1);
        if (K::sides && is_(kOwnsRow)) gradients<vectors>(chunk);
        __syncthreads();
      }
    }
    if (K::sides && !vectors && is_(kOwnsColumn)) write_gradients(chunks - 1);
  }

  SSIM_DEVICE static Roles roles_of(const Block<K>& block) {
    const Piece& p = block.piece;
    const Column task = column_at(p, block.level, task_local(block.thread));
    const Column column = column_at(p, block.level, block.thread);
    Roles roles;
    roles.set(kFiltersRow, task.map < p.maps && task.column < p.partial_col1 && task.column + R > p.partial_col0);
    roles.set(kOwnsRow, task.map < p.maps && task.column >= p.col0 && task.column < p.col1);
    roles.set(kHasPartials, column.map < p.maps && column.column >= p.partial_col0 && column.column < p.partial_col1);
    roles.set(kOwnsColumn, column.map < p.maps && column.column >= p.col0 && column.column < p.col1);
    roles.set(kLoadsColumn, column.map < p.maps && column.column >= 0 && column.column < block.level.w);
    roles.set(kLoadsHalo, block.level.strips > 1);
    roles.set(kRescales, block.level.ranges != nullptr);
    roles.set(kSumsL1, block.level.value_l1 != 0);
    if constexpr (!K::lean) {
      roles.set(kWeighs, block.args.seed.data != nullptr);
      roles.set(kWritesMap, roles(kOwnsColumn) && block.args.map.data != nullptr);
    }
    if (block.mirror) set_mirrors(roles, p, block.level.w, task.column, column.column);
    roles.seal();
    return roles;
  }

  SSIM_DEVICE static void set_mirrors(Roles& roles, const Piece& p, int w, int task, int column) {
    // The last task that filters sees to the right border, which need not be the block's own.
    const bool right = task + R >= p.partial_col1 && p.partial_col1 + kRadius > w;
    roles.set(kMirrorsRow, roles(kFiltersRow) && (task == 0 || right));
    roles.set(kMirrorsColumn, roles(kHasPartials) && (column <= kRadius || column >= w - 1 - kRadius));
    roles.set(kHalves, roles(kOwnsRow) && w > 1 && (task == 0 || task + R >= w));
  }

  SSIM_DEVICE T& ssim_sum() {
    if constexpr (K::lean)
      return b_.task_of(fresh_thread()).ssim_sum;
    else
      return ssim_sum_;
  }
  // The column that this thread filters along.
  SSIM_DEVICE Column column() const { return column_at(b_.piece, b_.level, fresh_thread()); }
  // In the horizontal filters a thread takes R pixels of one row of the chunk, from this column of the block on.
  SSIM_DEVICE static int task_local(int thread) { return thread & ~(R - 1); }
  SSIM_DEVICE static int task_row(int thread) { return thread & (R - 1); }

  // ---- moments ----

  // Filters R pixels of one row of u, v and their products.
  SSIM_DEVICE void horizontal_moments(int chunk) const {
    const int thread = fresh_thread(), row = b_.first_row(chunk) + task_row(thread);
    if (row >= b_.piece.load_end) {
      if (!K::mirrors) {  // vertical() does not ask
#pragma unroll
        for (int o = 0; o < R; ++o) b_.cells_of(task_local(thread) + o)[task_row(thread)] = {};
      }
      return;
    }
    // One pair more on each side than the window needs, for accesses of two.
    const TwoPairs<T>* from = reinterpret_cast<const TwoPairs<T>*>(b_.ring_line(chunk * R + task_row(thread)) +
                                                                   task_local(thread) - kRadius - 1);
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
      b_.cells_of(task_local(thread) + o)[task_row(thread)] = cell;
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
        sums[o][n] = j == o ? b_.launch.taps[0] * pixel[n] : sums[o][n] + b_.launch.taps[j - o] * pixel[n];
    }
  }

  // ---- SSIM and its partials ----

  SSIM_DEVICE void vertical(int chunk) {
    Values* cell = b_.cells_of(fresh_thread());
    if (!is_(kHasPartials)) {
      if (K::sides && !b_.mirror) {  // if mirrored, images may stand here
#pragma unroll
        for (int j = 0; j < R; ++j)
#pragma unroll
          for (int n = 0; n < K::values; ++n) cell[j].v[n] = T(0);
      }
      return;
    }
    const int first = b_.first_row(chunk);
    T sum = T(0);
    if (first >= b_.piece.inside_row0 && first < b_.piece.inside_row1) {
#pragma unroll(K::lean ? R : 1)
      for (int j = 0; j < R; ++j) row_with_partials(cell[j], j, first, true, b_.launch.taps, sum);
    } else {
      edge_rows(cell, first, sum);
    }
    if (is_(kOwnsColumn)) ssim_sum() += sum;
  }

  // Continues the filtered partials of a chunk beyond the borders of their map, and doubles those at a border: so the
  // horizontal filter is the adjoint of a mirrored one, but for a factor of 2 at borders (docs/math.md).
  SSIM_DEVICE void mirror_cells() const {
    Values* const cell = b_.cells_of(fresh_thread());
    const int column = this->column().column, w = b_.level.w, right = w - 1 - column;
    if (w <= kRadius + 1) {  // an image may be one of a border, or of an image
      if (w > 1 && (column == 0 || right == 0)) copy_cells(cell, 0, T(2));
#pragma unroll 1
      for (int to = -kRadius; to < w + kRadius; ++to)
        if ((to < 0 || to >= w) && mirrored(to, w) == column) copy_cells(cell, to - column, T(1));
      return;
    }
    if (column <= kRadius) copy_cells(cell, -2 * column, column == 0 ? T(2) : T(1));
    // Images further away than the block's own columns see are not needed, and might have no place.
    if (right <= kRadius && w - 1 + right < b_.piece.col1 + kRadius)
      copy_cells(cell, 2 * right, right == 0 ? T(2) : T(1));
  }

  SSIM_DEVICE static void copy_cells(Values* cell, int columns, T factor) {
    Values* const to = cell + columns * Block<K>::kCellRows;
#pragma unroll
    for (int j = 0; j < R; ++j) {
      Values values = cell[j];
#pragma unroll
      for (int n = 0; n < K::partials; ++n) values.v[n] *= factor;
      to[j] = values;
    }
  }

  // Row j of a chunk: takes its moments from the cell, and leaves there the filtered partials kTaps - 1 rows above.
  // `own`: where SSIM counts.
  SSIM_DEVICE void row_with_partials(Values& cell, int j, int first, bool own, const T* taps, T& sum) {
    T m[K::moments];
    push_moments(cell, m);
    const Pixel<T> pixel = ssim_of(m);
    T partials[K::partials], value = pixel.value;
    if constexpr (K::sides == 1) {
      const Adjoint<T> a = adjoint_x<K::separate>(pixel);
      partials[0] = a.a, partials[1] = a.b, partials[2] = a.c;
    } else if constexpr (K::sides == 2) {
      partials[0] = pixel.d_u, partials[1] = pixel.d_v, partials[2] = pixel.d_uu, partials[3] = pixel.d_vv;
      if constexpr (K::separate) partials[4] = pixel.d_uv;
    }
    if constexpr (!K::lean) weigh(partials, value, j, first + j - kRadius, own);
    if (own) sum += value;
    if constexpr (K::sides != 0) {
      partials_.push(partials, taps);
      keep_partials(cell, partials);
    }
  }

  SSIM_DEVICE static void keep_partials(Values& cell, const T (&partials)[K::partials]) {
    Values to;
#pragma unroll
    for (int n = 0; n < K::values; ++n) to.v[n] = n < K::partials ? partials[n] : T(0);
    cell = to;
  }

  // With which the partials of a row go into their filter, be it near a border or not.
  SSIM_DEVICE const T* taps_of(int row) const {
    if constexpr (Block<K>::kMayMirror) return b_.tables->folded.of(row, b_.level.h);
    return b_.launch.taps;
  }

  // A chunk with rows that have no partials, before those that have some or behind them, or with folded taps. A loop
  // for each kind: branches in one loop would have to be joined by copying the column filters.
  SSIM_DEVICE void edge_rows(Values* cell, int first, T& sum) {
    const int row0 = b_.piece.row0 + kRadius - first, row1 = b_.piece.row1 + kRadius - first;
    const int begin = smaller(R, b_.piece.partial_row0 + kRadius - first);
    const int end = smaller(R, b_.piece.partial_row1 + kRadius - first);
    const int last = smaller(R, b_.piece.end_row - first);
    int j = 0;
#pragma unroll 1
    for (; j < begin; ++j) {  // the filters of partials hold zeros yet
      T m[K::moments];
      push_moments(cell[j], m);
      if constexpr (K::sides != 0) cell[j] = {};
    }
#pragma unroll 1
    for (; j < end; ++j) row_with_partials(cell[j], j, first, j >= row0 && j < row1, taps_of(first + j - kRadius), sum);
    if constexpr (K::sides != 0) {
#pragma unroll 1
      for (; j < last; ++j) {  // no moments are asked for any more
        T partials[K::partials];
        partials_.push_zeros(partials);
        keep_partials(cell[j], partials);
      }
    }
  }

  SSIM_DEVICE void push_moments(const Values& cell, T (&m)[K::moments]) {
    const Values from = cell;
#pragma unroll
    for (int n = 0; n < K::moments; ++n) m[n] = from.v[n];
    moments_.push(m, b_.launch.taps);
  }

  SSIM_DEVICE Pixel<T> ssim_of(const T (&m)[K::moments]) const {
    if constexpr (K::separate) return separate_pixel(m[0], m[1], m[2], m[3], m[4], b_.launch.constants);
    if (K::lean || b_.launch.form == Form::kPlain)
      return paired_pixel<Form::kPlain>(m[0], m[1], m[2], m[3], b_.launch.constants);
    return paired_pixel<Form::kPaired>(m[0], m[1], m[2], m[3], b_.launch.constants);
  }

  // ---- weights and maps, of the general kernel ----

  struct Seeds {
    Word<T> of[R];
  };
  // As which one of type P is on its way: float64 does not fit into the words of float32.
  template <class P>
  using SeedOf = std::conditional_t<(sizeof(P) > sizeof(T)), T, P>;

  // Those of a chunk's rows, on their way while rows are filtered. Of rows beyond the map those at its border: nobody
  // asks for them.
  SSIM_DEVICE void fetch_seeds(int chunk, Seeds& seeds) const {
    if (!is_(kWeighs) || !is_(kHasPartials)) return;
    const int first = b_.first_row(chunk) - kRadius - b_.launch.margin, last = b_.level.h - 2 * b_.launch.margin - 1;
    as_type(b_.args.seed.dtype, [&](auto seed) {
      using P = decltype(seed);
      const P* column = in_global_memory(static_cast<const P*>(b_.task_of(fresh_thread()).seed));
      P taken[R];
#pragma unroll
      for (int j = 0; j < R; ++j) taken[j] = column[larger(0, smaller(first + j, last)) * b_.level.seed.stride_h];
#pragma unroll
      for (int j = 0; j < R; ++j) seeds.of[j] = bits_of(static_cast<SeedOf<P>>(taken[j]));
    });
  }

  SSIM_DEVICE void keep_seeds(const Seeds& seeds) const {
    if (!is_(kWeighs) || !is_(kHasPartials)) return;
    as_type(b_.args.seed.dtype, [&](auto seed) {
      using P = SeedOf<decltype(seed)>;
#pragma unroll
      for (int j = 0; j < R; ++j)
        b_.seeds[j * b_.threads + fresh_thread()] = static_cast<T>(element_of<P>(seeds.of[j]));
    });
  }

  SSIM_DEVICE void weigh(T (&partials)[K::partials], T& value, int j, int row, bool own_row) {
    if (own_row && is_(kWritesMap)) {
      as_pixels<T>(b_.args.map.dtype, [&](auto pixel) {
        using P = decltype(pixel);
        P* const column = in_global_memory(static_cast<P*>(b_.task_of(fresh_thread()).map));
        column[(row - b_.launch.margin) * b_.level.map.stride_h] = static_cast<P>(value);
      });
    }
    if (!is_(kWeighs)) return;
    const T seed = b_.seeds[j * b_.threads + fresh_thread()];
    if (own_row && is_(kOwnsColumn)) {
      seed_sum_ += seed;
      if (is_(kSumsL1))
        loads_.l1_sum() += Loads<K>::magnitude(b_.ring_line(row - b_.piece.first_row)[fresh_thread()].v) * seed;
    }
    value *= seed;
    if constexpr (K::sides != 0) {
#pragma unroll
      for (int n = 0; n < K::partials; ++n) partials[n] *= seed;
    }
  }

  // ---- gradients ----

  // The gradient of R pixels of one row, 10 rows above the row of this thread.
  template <bool vectors>
  SSIM_DEVICE void gradients(int chunk) {
    const int thread = fresh_thread(), local = task_local(thread);
    const int row = b_.first_row(chunk) + task_row(thread) - 2 * kRadius;
    if (row < b_.piece.row0 || row >= b_.piece.row1) return;
    T sums[R][K::partials];
#pragma unroll
    for (int j = 0; j < R + kTaps - 1; ++j) {
      const Values from = b_.cells_of(local - kRadius + j)[task_row(thread)];
      T partials[K::partials];
#pragma unroll
      for (int n = 0; n < K::partials; ++n) partials[n] = from.v[n];
      accumulate(sums, partials, j);
    }

    Pair<T>* pairs = b_.ring_line(chunk * R + task_row(thread) - 2 * kRadius) + local;
    const Rescale<T>& rescale = b_.tables->rescale[b_.map_of(thread)];
    const T by_x = b_.level.slope * rescale.scale[0], by_y = b_.level.slope * rescale.scale[1];
    if constexpr (K::sides == 1) {
      T gradient[R];
#pragma unroll
      for (int o = 0; o < R; o += 2) {
        const TwoPairs<T> two = *reinterpret_cast<const TwoPairs<T>*>(pairs + o);
#pragma unroll
        for (int i = 0; i < 2; ++i)
          gradient[o + i] = (sums[o + i][0] + two.pair[i].u * sums[o + i][1] + two.pair[i].v * sums[o + i][2]) * by_x;
      }
      if (b_.mirror && is_(kHalves)) {
        const int column = local - b_.begin_of_map(thread), last = b_.level.w - 1 - column;
        if (column == 0) gradient[0] *= T(0.5);
#pragma unroll
        for (int o = 0; o < R; ++o)
          if (o == last) gradient[o] *= T(0.5);
      }
      if (b_.level.l1 != T(0)) {
#pragma unroll
        for (int o = 0; o < R; ++o) gradient[o] += sign(pairs[o].v) * b_.level.l1;
      }
      if (K::tracks && (!K::mirrors || b_.args.range_sums)) {
        Task<E>& task = b_.task_of(thread);
        T sum = T(0), value_sum = T(0);
#pragma unroll
        for (int o = 0; o < R; ++o) {
          if (o >= task.end) continue;
          sum += gradient[o];
          value_sum += gradient[o] * (pairs[o].u + pairs[o].v);
        }
        task.grad_sum += sum, task.grad_value_sum += value_sum * T(0.5);
      }
      keep_gradient<vectors>(gradient, pairs, chunk);
    } else {
      const Column at = column_at(b_.piece, b_.level, local);
      T l1[R] = {};
      if (b_.level.l1 != T(0)) l1_gradients(at, row, pairs, l1);
#pragma unroll
      for (int o = 0; o < R; ++o) {
        const int column = at.column + o;
        if (column >= b_.piece.col1) continue;
        const Pair<T> pair = pairs[o];
        T of_u = sums[o][0] + pair.u * sums[o][2], of_v = sums[o][1] + pair.v * sums[o][3];
        if constexpr (K::separate) of_u += pair.v * sums[o][4], of_v += pair.u * sums[o][4];
        if (b_.mirror && is_(kHalves) && (column == 0 || column == b_.level.w - 1)) of_u *= T(0.5), of_v *= T(0.5);
        const T of_x = (of_u + of_v) * by_x + l1[o], of_y = (of_u - of_v) * by_y - l1[o];
        if (b_.args.range_sums) track(of_x, of_y, pair);
        pairs[o] = {of_x, of_y};
      }
    }
  }

  // Of |x - y| by x, for R pixels of a row.
  SSIM_DEVICE void l1_gradients(const Column& at, int row, const Pair<T>* pairs, T (&l1)[R]) const {
#pragma unroll
    for (int o = 0; o < R; ++o) l1[o] = T(1);
    if (is_(kWeighs)) b_.load_seeds(at, row, l1);
#pragma unroll
    for (int o = 0; o < R; ++o) l1[o] *= sign(pairs[o].v) * b_.level.l1;
  }

  SSIM_DEVICE static T sign(T v) { return v > T(0) ? T(1) : v < T(0) ? T(-1) : v * T(0); }  // a NaN stays

  SSIM_DEVICE void track(T of_x, T of_y, const Pair<T>& pair) {
    range_sums_[0] += of_x, range_sums_[1] += of_y;
    range_sums_[2] += of_x * (pair.u + pair.v) * T(0.5);
    range_sums_[3] += of_y * (pair.u - pair.v) * T(0.5);
  }

  // Writes R pixels of the gradient, or leaves them in the ring for write_gradients.
  template <bool vectors>
  SSIM_DEVICE void keep_gradient(const T (&gradient)[R], Pair<T>* pairs, int chunk) const {
    if constexpr (K::lean) {
      const Task<E>& task = b_.task_of(fresh_thread());
      if constexpr (!vectors) {
#pragma unroll
        for (int o = 0; o < R; ++o)
          if (o < task.end) pairs[o].u = gradient[o];
        return;
      }
      E* to = further(in_global_memory(task.grad_x), chunk, b_.tables->steps[2]);
#pragma unroll
      for (int j = 0; j < R; j += 4) {
        if (j >= task.end) continue;
        Four<E> four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.v[i] = static_cast<E>(gradient[j + i]);
        *reinterpret_cast<Four<E>*>(to + j) = four;
      }
    }
  }

  // Gradients that gradients() left in the ring, by columns: neighbouring threads write neighbouring pixels.
  SSIM_DEVICE void write_gradients(int chunk) const {
    const int first = b_.first_row(chunk) - 2 * kRadius;
    if constexpr (K::lean) {
      const int thread = fresh_thread(), line = chunk * R - 2 * kRadius;
      E* to = further(in_global_memory(b_.task_of(thread).grad_x), chunk, b_.tables->steps[2]);
#pragma unroll
      for (int j = 0; j < R; ++j, to += b_.level.grad_x.stride_h)
        if (first + j >= b_.piece.row0 && first + j < b_.piece.row1)
          *to = static_cast<E>(b_.ring_line(line + j)[thread].u);
    } else {
      as_pixels<T>(b_.level.x.dtype, [&](auto pixel) { write_both<decltype(pixel)>(first, chunk * R - 2 * kRadius); });
    }
  }

  // Of x and y, as far as they are wanted; P is their type.
  template <class P>
  SSIM_DEVICE void write_both(int first, int line) const {
    const int thread = fresh_thread();
    const Task<E>& task = b_.task_of(thread);
    P* to_x = in_global_memory(static_cast<P*>(task.grad_x)) + first * b_.level.grad_x.stride_h;
    P* to_y = in_global_memory(static_cast<P*>(task.grad_y)) + first * b_.level.grad_y.stride_h;
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (first + j >= b_.piece.row0 && first + j < b_.piece.row1) {
        const Pair<T> pair = b_.ring_line(line + j)[thread];
        if (b_.args.grad_x.data) *to_x = static_cast<P>(pair.u);
        if (b_.args.grad_y.data) *to_y = static_cast<P>(pair.v);
      }
      to_x += b_.level.grad_x.stride_h, to_y += b_.level.grad_y.stride_h;
    }
  }

  // ---- sums ----

  // Sums each map's threads in a fixed order, writes what the unit is worth, and adds up all units in the last block.
  SSIM_DEVICE void finish() {
    __syncthreads();  // cells and ring are free now
    const Column at = column();
    const int relative = fresh_thread() - static_cast<int>(at.map) * b_.level.slot;
    const int span = b_.args.maps == 1 ? static_cast<int>(blockDim.x) : b_.level.slot;
    // A task's thread number lies among the columns of its own map: its segment begins at a multiple of R.
    T sums[7] = {ssim_sum(),     seed_sum_,      loads_.l1_sum(), range_sums_[0],
                 range_sums_[1], range_sums_[2], range_sums_[3]};
    if constexpr (K::lean && K::tracks)
      sums[3] = b_.task_of(fresh_thread()).grad_sum, sums[5] = b_.task_of(fresh_thread()).grad_value_sum;
    T* memory = reinterpret_cast<T*>(b_.ring);
#pragma unroll
    for (int n = 0; n < 7; ++n)
      if (n == 0 || (n == 1 && !K::lean) || (n == 2 && is_(kSumsL1)) ||
          (n > 2 && (n % 2 || !K::lean) && K::tracks && b_.args.range_sums))
        sums[n] = sum_span(memory, sums[n], relative, span);
    if (relative == 0 && at.map < b_.piece.maps) {
      const uint32_t unit = b_.piece.unit_of_first_plane + at.map * b_.piece.units_per_plane;
      if (b_.args.slots) {
        double seeds = sums[1];
        if (K::lean || !b_.args.seed.data)
          seeds = static_cast<double>(count_own(b_.piece.row0, b_.piece.row1, b_.level.h)) *
                  count_own(b_.piece.col0, b_.piece.col1, b_.level.w);
        b_.args.slots[unit] = b_.level.value_offset * seeds + b_.level.value_slope * sums[0] +
                              b_.level.value_l1 * b_.launch.data_range * sums[2];
      }
      if (K::tracks && b_.args.range_sums) b_.args.range_sums[unit] = {{sums[3], sums[4]}, {sums[5], sums[6]}};
      if (K::tracks && b_.args.range_sums && b_.args.found) {
        const Gradients<T> of = of_extremes<T>(sums[3], sums[5] / b_.launch.inverse_range, b_.tables->lows[at.map],
                                               b_.tables->highs[at.map]);
        b_.tables->of_low[at.map] = of.low, b_.tables->of_high[at.map] = of.high;
      }
    }
    if constexpr (K::lean && K::tracks) {
      if (b_.args.range_sums && b_.args.found) settle_extremes(at);
    }
    if (b_.launch.arrived) sum_slots(b_.launch, reinterpret_cast<double*>(memory));
  }

  // Adds what minimum and maximum of x receive, where the block has whole maps: a thread goes down its column.
  SSIM_DEVICE void settle_extremes(const Column& at) const {
    __syncthreads();
    if (!is_(kOwnsColumn)) return;
    const RangePair<T> range = b_.args.found[b_.piece.first_plane + at.map];
    const T of_low = b_.tables->of_low[at.map], of_high = b_.tables->of_high[at.map];
    const int64_t x = b_.offset_of(b_.args.x, at.map, 0, at.column);
#pragma unroll 4
    for (int row = 0; row < b_.level.h; ++row) {
      const T value = b_.load(b_.args.x, x + row * b_.args.x.stride_h);
      if (value != range.low[0] && value != range.high[0]) continue;
      E* to = static_cast<E*>(b_.args.grad_x.data) + b_.offset_of(b_.args.grad_x, at.map, row, at.column);
      *to = static_cast<E>(static_cast<T>(*to) + (value == range.low[0] ? of_low : T(0)) +
                           (value == range.high[0] ? of_high : T(0)));
    }
  }

  // Pixels of the map among the piece's own, along one axis.
  SSIM_DEVICE int count_own(int begin, int end, int length) const {
    return larger(0, smaller(end, length - b_.launch.margin) - larger(begin, b_.launch.margin));
  }

  const Block<K>& b_;
  const Roles is_;
  Loads<K> loads_;
  ColumnFilter<T, K::moments> moments_;
  ColumnFilter<T, K::partials> partials_;
  T ssim_sum_ = T(0), seed_sum_ = T(0), range_sums_[4] = {T(0), T(0), T(0), T(0)};
};

template <class K>
__global__ void __maxnreg__(K::registers) march(const __grid_constant__ LaunchArgs<typename K::T> launch) {
  SSIM_DYNAMIC_SHARED(memory);
  const Block<K> block(launch, memory);
  block.prepare();
  March<K>(block).run();
}

}  // namespace ssim
