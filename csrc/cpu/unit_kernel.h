// One unit, in one pass over its rows: moments, SSIM, partial derivatives and gradients, each a few rows behind the
// last.
//
//   rows of x, y  ->  ring of u, v, u^2, v^2  ->  filter down, then along  ->  SSIM and its partials
//   ->  ring of partials  ->  filter down, then along  ->  gradient rows, 5 behind the partials
//
// A row is a sequence of columns, a column one vector for each map, a vector one pixel of each lane's band (unit.h).
// Four rows, and along a row four columns, go together, so that a filter reads 14 values for four results instead
// of 44. Rows are counted from each lane's row0, columns from the first one with partials. Included once for each
// instruction set.
#pragma once

#include "rows_kernel.h"
#include "unit.h"

namespace ssim {
inline namespace SSIM_ISA {

template <class T, Form form, int sides>  // sides: 0 no gradient, 1 of x, 2 of x and y
class UnitKernel {
  using V = typename Simd<T>::V;
  using Mask = typename Simd<T>::Mask;
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static constexpr int lanes = kLanes<T>;
  static constexpr bool separate = form == Form::kSeparate;
  static constexpr int moments = separate ? 5 : 4;
  static constexpr int maps = sides == 0 ? 1 : sides == 1 ? 3 : separate ? 5 : 4;
  static constexpr int64_t kOutput = kBlock + lanes;  // columns of an output row, with the last of the block before

 public:
  explicit UnitKernel(UnitCall<T>& call)
      : call_(call), p_(*call.problem), level_(*call.level), unit_(call.unit), seeded_(level_.seed.data != nullptr) {
    margin_ = p_.padding == Padding::kValid ? p_.window_radius : 0;
    reflect_ = p_.padding == Padding::kReflect;
    constants_ = {static_cast<T>(p_.c1), static_cast<T>(p_.c2), static_cast<T>(p_.alpha), static_cast<T>(p_.beta),
                  static_cast<T>(p_.gamma)};
    for (int k = 0; k <= kRadius; ++k) taps_[k] = V{} + static_cast<T>(p_.taps[k]);
    const int64_t reach = sides ? kRadius : 0;
    origin_ = larger(0, unit_.col0 - reach);
    const int64_t end = smaller(level_.w, unit_.col1 + reach);
    width_ = end - origin_;
    own0_ = unit_.col0 - origin_, own1_ = unit_.col1 - origin_;
    load0_ = larger(0, origin_ - kRadius) - origin_;
    load1_ = smaller(level_.w, end + kRadius) - origin_;
    mirror_left_ = reflect_ && origin_ == 0, mirror_right_ = reflect_ && end == level_.w;
    fill0_ = mirror_left_ ? -kRadius : load0_, fill1_ = mirror_right_ ? width_ + kRadius : load1_;
    keep0_ = larger(0, margin_ - origin_), keep1_ = smaller(width_, level_.w - margin_ - origin_);
    lay_out_lanes();
    by_x_ = scale_x_ * static_cast<T>(level_.slope * level_.grad_scale);
    by_y_ = scale_y_ * static_cast<T>(level_.slope * level_.grad_scale);
    by_l1_ = static_cast<T>(level_.l1 * level_.grad_scale);
    lay_out_memory();
  }

  void run() {
    const int64_t first = sides && highest_ > 0 ? -kRadius : 0;
    const int64_t end = unit_.rows + (sides ? kRadius : 0);
    int64_t loaded = first - kRadius;
    for (int64_t q = first, step = 0; q < end; q += kStep, ++step) {
      for (; loaded < q + kStep + kRadius; ++loaded) load_row(loaded, moments_row(loaded - first));
      // Both rings turn alike: each window begins where its ring did, `phase` pairs of rows ago.
      const int phase = static_cast<int>(step * (kStep / 2) % (kRing / 2));
      pixel_rows(q, q - first, phase);
      const int64_t p = q - kRadius;
      if (sides && p + kStep > 0 && p < unit_.rows) gradient_rows(p, q - first, phase);
    }
  }

 private:
  // ---- lanes ----

  // Which lanes' bands have a pixel in a row; the mask counts where it is some and not all.
  struct Rows {
    bool any, all;
    Mask mask;
  };

  // Row `row` of each band: whether it is in the plane, `margin` rows from its ends.
  Rows rows(int64_t row, int64_t margin) const {
    if (lowest_ == highest_) {
      const bool inside = lowest_ + row >= margin && lowest_ + row < level_.h - margin;
      return {inside, inside, Mask{}};
    }
    const Mask at = row0_ + static_cast<Integer>(row);
    Rows r{false, true, Mask((at >= static_cast<Integer>(margin)) & (at < static_cast<Integer>(level_.h - margin)))};
    for (int i = 0; i < lanes; ++i) r.any |= r.mask[i] != 0, r.all &= r.mask[i] != 0;
    return r;
  }

  void lay_out_lanes() {
    lowest_ = highest_ = unit_.bands[0].row0;
    for (int i = 0; i < lanes; ++i) {
      const int from = i < unit_.count ? i : 0;
      band_[i] = unit_.bands[from];
      row0_[i] = static_cast<Integer>(band_[i].row0);
      lowest_ = smaller(lowest_, band_[i].row0), highest_ = larger(highest_, band_[i].row0);
      low_x_[i] = static_cast<T>(call_.range_x[from].low), scale_x_[i] = static_cast<T>(call_.range_x[from].scale);
      low_y_[i] = static_cast<T>(call_.range_y[from].low), scale_y_[i] = static_cast<T>(call_.range_y[from].scale);
    }
  }

  // ---- memory ----

  static constexpr size_t bytes(int64_t vectors) { return static_cast<size_t>(vectors) * SSIM_VECTOR_BYTES; }

  void lay_out_memory() {
    T* next = static_cast<T*>(call_.workspace);
    const auto take = [&](int64_t vectors, int64_t before) {  // `before` vectors lie in front of the pointer
      T* begin = next + before * lanes;
      next += vectors * lanes;
      return begin;
    };
    constexpr int64_t row = kRowStride<T> / lanes, block = kFilteredStride<T> / lanes;
    moments_ring_ = take(kRing * row, kRadius * moments);
    partials_ring_ = take(kRing * row, kRadius * maps);
    filtered_ = take(kStep * block, 0);
    for (T*& output : output_) output = take(kStep * kOutput, lanes);
    seed_ = take(kBlock, 0);
    scratch_ = take(kSpan, 0);
    static_assert(bytes(2 * kRing * row + kStep * (block + 2 * kOutput) + kBlock + kSpan) <= kWorkspaceBytes);
    if (sides)  // the ring of partials starts with rows outside
      for (int i = 0; i < kRing; ++i) clear_partials(partials_ring_ + i * kRowStride<T>);
    if (mirror_left_ || mirror_right_) fold_column_taps();
  }

  // Rows of the rings by their distance from the first with partials.
  T* moments_row(int64_t at) const { return moments_ring_ + (at + kRadius) % kRing * kRowStride<T>; }
  T* partials_row(int64_t at) const { return partials_ring_ + (at + 2 * kRadius) % kRing * kRowStride<T>; }

  void clear_partials(T* row) const {
    __builtin_memset(row + keep0_ * maps * lanes, 0, bytes((keep1_ - keep0_) * maps));
  }

  static constexpr DType native = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;

  static int64_t at(const View& view, const Band& band, int64_t row, int64_t column) {
    return band.n * view.stride_n + band.c * view.stride_c + row * view.stride_h + column * view.stride_w;
  }

  // Reads `count` columns of a tensor from (row0 + row, column) on into vectors, `stride` apart. A row outside is read
  // mirrored, or at the nearest inside.
  void read(const View& view, int64_t row, int64_t height, int64_t column, int64_t count, T* to, int64_t stride) {
    const bool dense = view.dtype == native && view.stride_w == 1;
    const T* from[lanes];
    for (int i = 0; i < lanes; ++i) {
      int64_t a = band_[i].row0 + row;
      if (a < 0 || a >= height) a = reflect_ ? mirrored(a, height) : a < 0 ? 0 : height - 1;
      if (dense) {
        from[i] = static_cast<const T*>(view.data) + at(view, band_[i], a, column);
      } else {
        call_.access.load(scratch_ + i * kSpan, view, at(view, band_[i], a, column), count);
        from[i] = scratch_ + i * kSpan;
      }
    }
    gather(from, count, dense ? fetch_ahead(view) : 0, to, stride);
  }

  // Elements from a pixel to the one worth fetching while it is read: of the next rows, or of the next unit's planes
  // where this unit's own fit into the cache beside the rings.
  int64_t fetch_ahead(const View& view) const {
    const bool small = unit_.rows * level_.w * lanes * static_cast<int64_t>(sizeof(T)) <= kSmallPlanes;
    return small ? view.stride_c * lanes : view.stride_h * kStep;
  }

  // Where the lanes of four rows of an output go, and the row of scratch of those that go nowhere (or not straight).
  struct Target {
    const View* view;
    bool dense;
    T* to[kStep][lanes];
  };

  // Rows row to row + 3 of a tensor, from `column` on.
  Target target(const View& view, int64_t row, const Rows* inside, int64_t column) const {
    Target target;
    target.view = &view;
    target.dense = view.dtype == native && view.stride_w == 1;
    for (int i = 0; i < kStep; ++i)
      for (int lane = 0; lane < lanes; ++lane) {
        const bool there = lane < unit_.count && inside[i].any && (inside[i].all || inside[i].mask[lane]);
        target.to[i][lane] = target.dense && there ? static_cast<T*>(view.data) +
                                                         at(view, band_[lane], band_[lane].row0 + row + i, column)
                                                   : nullptr;
      }
    return target;
  }

  // Writes `count` vectors to columns [offset, offset + count) of a target's row i. The last of a block stay in front
  // of the next one, see scatter.
  void write(const Target& target, int i, int64_t row, const Rows& inside, int64_t column, int64_t offset, T* values,
             int64_t count) {
    T* to[lanes];
    for (int lane = 0; lane < lanes; ++lane)
      to[lane] = target.to[i][lane] ? target.to[i][lane] + offset : scratch_ + lane * kOutput + lanes;
    scatter(values, count, offset > 0 || !target.dense, to);
    for (int lane = 0; !target.dense && lane < unit_.count; ++lane)
      if (inside.all || inside.mask[lane])
        call_.access.store(to[lane], *target.view,
                           at(*target.view, band_[lane], band_[lane].row0 + row, column + offset), count);
    for (int k = 0; k < lanes; ++k)
      store(values + (k - lanes) * lanes, in_register(load(values + (kBlock - lanes + k) * lanes)));
  }

  // Lanes hold the sums of a row, few enough pixels to stay exact to their last bits; rows add up in double.
  void add(double UnitSums::* sum, V values, const Rows& inside, double factor = 1) {
    for (int i = 0; i < unit_.count; ++i)
      if (inside.all || inside.mask[i]) call_.sums[i].*sum += values[i] * factor;
  }

  // ---- x and y ----

  // Row `row` of u, v, u^2, v^2 (and uv).
  void load_row(int64_t row, T* out) {
    const Rows inside = rows(row, 0);
    if (!inside.any && !reflect_) {
      __builtin_memset(out + fill0_ * moments * lanes, 0, bytes((fill1_ - fill0_) * moments));
      return;
    }
    const int64_t column = origin_ + load0_, count = load1_ - load0_;
    T* own = out + load0_ * moments * lanes;
    read(level_.x, row, level_.h, column, count, own, moments);
    read(level_.y, row, level_.h, column, count, own + lanes, moments);
    const bool outside = !inside.all && !reflect_;
    for (T* to = own; to != own + count * moments * lanes; to += moments * lanes) {
      const V x = (load(to) - low_x_) * scale_x_, y = (load(to + lanes) - low_y_) * scale_y_;
      V u = x + y, v = x - y;
      if (outside) u = keep<T>(u, inside.mask), v = keep<T>(v, inside.mask);
      store(to, u);
      store(to + lanes, v);
      store(to + 2 * lanes, u * u);
      store(to + 3 * lanes, v * v);
      if constexpr (separate) store(to + 4 * lanes, u * v);
    }
    if (mirror_left_)
      for (int64_t d = 1; d <= kRadius; ++d) copy_column(out, -d);
    if (mirror_right_)
      for (int64_t d = 0; d < kRadius; ++d) copy_column(out, width_ + d);
    if (level_.l1 != 0 && row >= 0 && row < unit_.rows) sum_l1(row, inside, out);
  }

  void copy_column(T* row, int64_t column) const {
    // A unit narrower than its map is wide enough never to be mirrored twice.
    const int64_t from = mirrored(origin_ + column, level_.w) - origin_;
    __builtin_memcpy(row + column * moments * lanes, row + from * moments * lanes, bytes(moments));
  }

  void sum_l1(int64_t row, const Rows& inside, const T* moments_row) {
    if (!inside.any) return;
    V sum{};
    for (int64_t c = own0_; c < own1_; ++c) {
      const int64_t in_block = (c - own0_) % kBlock;
      if (seeded_ && in_block == 0) read(level_.seed, row, level_.h, origin_ + c, smaller(kBlock, own1_ - c), seed_, 1);
      const V v = load(moments_row + (c * moments + 1) * lanes);
      const V distance = v < T(0) ? -v : v;
      sum += seeded_ ? distance * load(seed_ + in_block * lanes) : distance;
    }
    add(&UnitSums::l1, sum, inside, p_.data_range);
  }

  // ---- filters ----

  // Filters the 14 rows of a ring down and then along, block by block: calls block(c, n) for columns [c, c + n) of the
  // results [first, last). Only columns [begin, end) of the ring are other than zero. fold(out, from, to) may filter
  // these columns down once more.
  template <int count, class Fold, class Block>
  SSIM_INLINE void filter_blocks(int phase, const T* ring, int64_t begin, int64_t end, int64_t first, int64_t last,
                                 const Fold& fold, const Block& block) {
    int64_t done = first - kRadius;  // columns filtered down
    for (int64_t c = first; c < last; c += kBlock) {
      const int64_t n = smaller(kBlock, last - c), need = c + (n + kStep - 1) / kStep * kStep + kRadius;
      T* const out = filtered_ - (c - kRadius) * count * lanes;  // of column 0
      const int64_t from = smaller(larger(done, begin), need), to = larger(from, smaller(need, end));
      clear_filtered<count>(out, done, from);
      filter_rows<T>(phase, ring, out + from * count * lanes, from * count, to * count, taps_);
      fold(out, from, to);
      clear_filtered<count>(out, to, need);
      done = need;
      block(c, n);
      if (c + kBlock >= last) break;
      for (int i = 0; i < kStep; ++i) {
        T* row = filtered_ + i * kFilteredStride<T>;
        for (int64_t k = 0; k < 2 * kRadius * count; ++k)
          store(row + k * lanes, in_register(load(row + (k + kBlock * count) * lanes)));
      }
    }
  }

  template <int count>
  static void clear_filtered(T* out, int64_t begin, int64_t end) {
    if (begin == end) return;
    for (int i = 0; i < kStep; ++i)
      __builtin_memset(out + i * kFilteredStride<T> + begin * count * lanes, 0, bytes((end - begin) * count));
  }

  // Four columns along filtered row i, from the one `column` columns into the block on: results[map][column].
  template <int count>
  SSIM_INLINE void filter_along(int i, int64_t column, V (&results)[count][kStep]) const {
    const V taps[kRadius + 1] = {taps_[0], taps_[1], taps_[2], taps_[3], taps_[4], taps_[5]};
    const T* window = filtered_ + i * kFilteredStride<T> + column * count * lanes;
#pragma GCC unroll 5
    for (int k = 0; k < count; ++k)
      filter_four(
          taps, [&](int t) __attribute__((always_inline)) { return load(window + (t * count + k) * lanes); },
          results[k]);
  }

  // ---- SSIM ----

  // SSIM and its partials of rows q to q + 3; `at` is q's distance from the first row with partials.
  void pixel_rows(int64_t q, int64_t at, int phase) {
    Rows inside[kStep];
    bool any = false;
    for (int i = 0; i < kStep; ++i) {
      inside[i] = rows(q + i, margin_);
      any |= inside[i].any;
      if (sides && !inside[i].any) clear_partials(partials_row(at + i));
    }
    if (!any) return;
    V sums[kStep] = {}, seeds[kStep] = {};
    Target to_map;
    if (!sides && level_.map.data) to_map = target(level_.map, q - margin_, inside, origin_ + keep0_ - margin_);
    filter_blocks<moments>(
        phase, moments_ring_, fill0_, fill1_, keep0_, keep1_, [](T*, int64_t, int64_t) {},
        [&](int64_t c, int64_t n) {
          for (int i = 0; i < kStep; ++i)
            if (inside[i].any) pixels(q + i, i, inside[i], c, n, partials_row(at + i), sums[i], seeds[i], to_map);
        });
    for (int i = 0; i < kStep; ++i) {
      if (!inside[i].any || q + i < 0 || q + i >= unit_.rows) continue;
      add(&UnitSums::ssim, sums[i], inside[i]);
      if (!seeded_) seeds[i] += static_cast<T>(larger(0, smaller(own1_, keep1_) - larger(own0_, keep0_)));
      add(&UnitSums::seed, seeds[i], inside[i]);
    }
  }

  // `n` columns of filtered row i; `simple`: of all lanes, and without weights.
  template <bool simple>
  void pixel_columns(int i, const Rows& inside, int64_t n, int64_t own, int64_t owned, T* partials, T* values, V& sums,
                     V& seeds) const {
    const Constants<T> constants = constants_;
    V sum = sums;
    // Apart from the filters, so that several pixels' long chains of operations run beside each other.
    V m[kBlock / kStep][moments][kStep];
    for (int64_t j = 0; j < n; j += kStep) filter_along<moments>(i, j, m[j / kStep]);
    for (int64_t j = 0; j < n; j += kStep) {
      const V(*of)[kStep] = m[j / kStep];
      const int64_t columns = smaller(kStep, n - j);
#pragma GCC unroll 1
      for (int64_t t = 0; t < columns; ++t, partials += maps * lanes) {
        Pixel<V> r;
        if constexpr (separate)
          r = separate_pixel(of[0][t], of[1][t], of[2][t], of[3][t], of[4][t], constants);
        else
          r = paired_pixel<form>(of[0][t], of[1][t], of[2][t], of[3][t], constants);
        V weight{};
        if (!simple && seeded_) weight = load(seed_ + (j + t) * lanes);
        if (!sides) store(values + (j + t) * lanes, r.value);
        if (static_cast<uint64_t>(own + j + t) < static_cast<uint64_t>(owned)) {
          sum += !simple && seeded_ ? r.value * weight : r.value;
          if (!simple && seeded_) seeds += weight;
        }
        if constexpr (sides != 0) {
          V map[maps];
          if constexpr (sides == 1) {
            const Adjoint<V> a = adjoint_x<separate>(r);
            map[0] = a.a, map[1] = a.b, map[2] = a.c;
          } else {
            map[0] = r.d_u, map[1] = r.d_v, map[2] = r.d_uu, map[3] = r.d_vv;
            if constexpr (separate) map[4] = r.d_uv;
          }
          for (int k = 0; k < maps; ++k) {
            if (!simple && seeded_) map[k] *= weight;
            if (!simple && !inside.all) map[k] = keep<T>(map[k], inside.mask);
            store(partials + k * lanes, map[k]);
          }
        }
      }
    }
    sums = sum;
  }

  // Columns [begin, begin + n) of row q, which is filtered row i.
  SSIM_INLINE void pixels(int64_t q, int i, const Rows& inside, int64_t begin, int64_t n, T* partials, V& sums,
                          V& seeds, const Target& to_map) {
    const bool own_row = q >= 0 && q < unit_.rows;
    if (seeded_)  // a map's rows begin `margin` rows below the plane's
      read(level_.seed, q - margin_, level_.h - 2 * margin_, origin_ + begin - margin_, n, seed_, 1);
    T* const values = output_[0] + i * kOutput * lanes;
    // The unit's own pixels: those of an unsigned number below `owned` from `own` on.
    const int64_t own = begin - own0_, owned = own_row ? own1_ - own0_ : 0;
    if (inside.all && !seeded_)
      pixel_columns<true>(i, inside, n, own, owned, partials + begin * maps * lanes, values, sums, seeds);
    else
      pixel_columns<false>(i, inside, n, own, owned, partials + begin * maps * lanes, values, sums, seeds);
    // Without gradients a unit has no pixels but its own.
    if (!sides && level_.map.data)
      write(to_map, i, q - margin_, inside, origin_ + keep0_ - margin_, begin - keep0_, values, n);
  }

  // ---- gradients ----

  // The gradients of rows p to p + 3, 5 behind those of `at` and `phase`.
  void gradient_rows(int64_t p, int64_t at, int phase) {
    Rows inside[kStep];
    bool folds[kStep] = {};
    V folded[kStep][kTaps];
    for (int i = 0; i < kStep; ++i) {
      inside[i] = rows(p + i, 0);
      inside[i].any = inside[i].any && p + i >= 0 && p + i < unit_.rows;
      if (reflect_ && inside[i].any) folds[i] = fold_row_taps(p + i, folded[i]);
    }
    V grads[kStep][2] = {}, grad_values[kStep][2] = {};
    const int64_t column = origin_ + own0_;
    const Target to_x = target(level_.grad_x, p, inside, column);
    Target to_y;
    if (sides == 2) to_y = target(level_.grad_y, p, inside, column);
    filter_blocks<maps>(
        phase, partials_ring_, keep0_, keep1_, own0_, own1_,
        [&](T* out, int64_t from, int64_t to) {
          for (int i = 0; i < kStep; ++i)
            for (int64_t j = from * maps * lanes; folds[i] && j < to * maps * lanes; j += lanes) {
              V sum{};
              for (int k = 0; k < kTaps; ++k) sum += folded[i][k] * load(partials_row(at + i + k - 2 * kRadius) + j);
              store(out + i * kFilteredStride<T> + j, sum);
            }
        },
        [&](int64_t c, int64_t n) {
          for (int i = 0; i < kStep; ++i) {
            if (!inside[i].any) continue;
            T* const of_x = output_[0] + i * kOutput * lanes;
            T* const of_y = output_[1] + i * kOutput * lanes;
            gradient(p + i, i, c, n, moments_row(at + i - kRadius), of_x, of_y, grads[i], grad_values[i]);
            write(to_x, i, p + i, inside[i], column, c - own0_, of_x, n);
            if (sides == 2) write(to_y, i, p + i, inside[i], column, c - own0_, of_y, n);
          }
        });
    if (!tracks_extremes()) return;
    for (int i = 0; i < kStep; ++i)
      for (int lane = 0; lane < unit_.count && inside[i].any; ++lane) {
        if (!inside[i].all && !inside[i].mask[lane]) continue;
        for (int side = 0; side < sides; ++side) {
          call_.sums[lane].grad[side] += grads[i][side][lane];
          call_.sums[lane].grad_value[side] += grad_values[i][side][lane] * 0.5;  // u + v = 2 x'
        }
      }
  }

  bool tracks_extremes() const { return p_.normalize != Normalize::kNone && !p_.detach_range; }

  // Columns [begin, begin + n) of row p, which is filtered row i; u and v from the ring.
  SSIM_INLINE void gradient(int64_t p, int i, int64_t begin, int64_t n, const T* moments_row, T* of_x_row, T* of_y_row,
                            V (&grads)[2], V (&grad_values)[2]) {
    const V by_x = by_x_, by_y = by_y_;
    const T by_l1 = by_l1_;
    const bool l1 = by_l1 != 0, track = tracks_extremes(), mirrors = mirror_left_ || mirror_right_;
    if (l1 && seeded_) read(level_.seed, p, level_.h, origin_ + begin, n, seed_, 1);
    if (sides == 1 && !l1 && !track && !mirrors) {
      for (int64_t j = 0; j < n; j += kStep) {
        V f[maps][kStep];
        filter_along<maps>(i, j, f);
        const T* from = moments_row + (begin + j) * moments * lanes;
        for (int t = 0; t < kStep; ++t, from += moments * lanes)  // what is too much stays in the row's margin
          store(of_x_row + (j + t) * lanes,
                (f[0][t] + load(from) * f[maps > 1][t] + load(from + lanes) * f[maps - 1][t]) * by_x);
      }
      return;
    }
    for (int64_t j = 0; j < n; j += kStep) {
      V f[maps][kStep];
      filter_along<maps>(i, j, f);
      const int64_t columns = smaller(kStep, n - j);
      for (int64_t t = 0; t < columns; ++t) {
        const int64_t c = begin + j + t;
        if (mirrors) fold_column(f, i, j, t, c);
        const V u = load(moments_row + c * moments * lanes), v = load(moments_row + (c * moments + 1) * lanes);
        V of_l1{};
        if (l1) {
          of_l1 = v > T(0) ? V{} + by_l1 : (v < T(0) ? V{} - by_l1 : v * T(0));
          if (seeded_) of_l1 *= load(seed_ + (j + t) * lanes);
        }
        if constexpr (sides == 1) {
          V of_x = (f[0][t] + u * f[1][t] + v * f[2][t]) * by_x;
          if (l1) of_x += of_l1;
          store(of_x_row + (j + t) * lanes, of_x);
          if (track) grads[0] += of_x, grad_values[0] += of_x * (u + v);
        } else if constexpr (sides == 2) {
          V of_u = f[0][t] + u * f[2][t] * T(2), of_v = f[1][t] + v * f[3][t] * T(2);
          if constexpr (separate) of_u += v * f[4][t], of_v += u * f[4][t];
          const V of_x = (of_u + of_v) * by_x + of_l1, of_y = (of_u - of_v) * by_y - of_l1;
          store(of_x_row + (j + t) * lanes, of_x);
          store(of_y_row + (j + t) * lanes, of_y);
          if (track) {
            grads[0] += of_x, grad_values[0] += of_x * (u + v);
            grads[1] += of_y, grad_values[1] += of_y * (u - v);
          }
        }
      }
    }
  }

  // ---- mirrored borders ----
  //
  // The adjoint of mirroring folds back what the filter gives to the images of a row (or column): its taps, where they
  // see the partials of those images, are added to its own.

  // The taps of `position` with those of its images; whether it has any.
  bool fold_taps(int64_t position, int64_t length, T* taps) const {
    for (int k = 0; k < kTaps; ++k) taps[k] = static_cast<T>(p_.taps[k]);
    if (position > kRadius && position < length - 1 - kRadius) return false;
    bool folded = false;
    const auto add_image = [&](int64_t image) {
      if (mirrored(image, length) != position) return;
      folded = true;
      for (int k = 0; k < kTaps; ++k) {
        const int64_t at = image + k - position;  // the tap of `position` that sees what tap k of the image sees
        if (at >= 0 && at < kTaps) taps[at] += static_cast<T>(p_.taps[k]);
      }
    };
    for (int64_t d = 1; d <= kRadius; ++d) {
      add_image(-d);
      add_image(length - 1 + d);
    }
    return folded;
  }

  // The same for row p of each lane's band; whether any has images.
  bool fold_row_taps(int64_t p, V* taps) const {
    bool folded = false;
    for (int lane = 0; lane < lanes; ++lane) {
      T own[kTaps] = {};
      const int64_t row = band_[lane].row0 + p;
      if (row >= 0 && row < level_.h) folded |= fold_taps(row, level_.h, own);
      for (int k = 0; k < kTaps; ++k) taps[k][lane] = own[k];
    }
    return folded;
  }

  static constexpr int kFolded = kRadius + 1;  // columns at either border that may have images

  void fold_column_taps() {
    for (int64_t d = 0; d < smaller(kFolded, width_); ++d) {
      fold_taps(origin_ + d, level_.w, left_taps_[d]);
      fold_taps(origin_ + width_ - 1 - d, level_.w, right_taps_[d]);
    }
  }

  // Column c anew, the t-th of those filtered along from column j of the block on.
  void fold_column(V (&f)[maps][kStep], int i, int64_t j, int64_t t, int64_t c) const {
    const T* taps = mirror_left_ && c < kFolded              ? left_taps_[c]
                    : mirror_right_ && c >= width_ - kFolded ? right_taps_[width_ - 1 - c]
                                                             : nullptr;
    if (!taps) return;
    const T* window = filtered_ + i * kFilteredStride<T> + (j + t) * maps * lanes;
    for (int k = 0; k < maps; ++k) {
      f[k][t] = V{};
      for (int tap = 0; tap < kTaps; ++tap) f[k][t] += taps[tap] * load(window + (tap * maps + k) * lanes);
    }
  }

  UnitCall<T>& call_;
  const Problem& p_;
  const Level& level_;
  const Unit& unit_;
  const bool seeded_;
  int64_t margin_;            // pixels that "valid" leaves out
  int64_t origin_, width_;    // first column with partials, and their number
  int64_t own0_, own1_;       // the unit's own columns, local
  int64_t load0_, load1_;     // columns of x and y that are read, local
  int64_t fill0_, fill1_;     // and with mirror images
  int64_t keep0_, keep1_;     // columns that are in the map, local
  int64_t lowest_, highest_;  // row0 of all bands
  bool reflect_, mirror_left_, mirror_right_;
  Band band_[lanes];
  Mask row0_;
  V low_x_, scale_x_, low_y_, scale_y_;
  V by_x_, by_y_;  // from a filtered partial to a gradient
  T by_l1_;
  V taps_[kRadius + 1];
  Constants<T> constants_;
  T *moments_ring_, *partials_ring_, *filtered_, *output_[2], *seed_, *scratch_;
  T left_taps_[kFolded][kTaps], right_taps_[kFolded][kTaps];
};

template <class T, Form form>
void run_form(UnitCall<T>& call) {
  if (call.level->grad_y.data) return UnitKernel<T, form, 2>(call).run();
  if (call.level->grad_x.data) return UnitKernel<T, form, 1>(call).run();
  return UnitKernel<T, form, 0>(call).run();
}

template <class T>
void run_unit(UnitCall<T>& call) {
  switch (call.problem->form()) {
    case Form::kPlain: return run_form<T, Form::kPlain>(call);
    case Form::kPaired: return run_form<T, Form::kPaired>(call);
    default: return run_form<T, Form::kSeparate>(call);
  }
}

}  // namespace SSIM_ISA
}  // namespace ssim

#define SSIM_DEFINE_KERNELS(function, label)                                                                   \
  namespace ssim {                                                                                             \
  const UnitKernels* function() {                                                                              \
    static constexpr UnitKernels kernels = {                                                                   \
        label, kLanes<float>, kLanes<double>, run_unit<float>, run_unit<double>, widen<float>, widen<double>}; \
    return &kernels;                                                                                           \
  }                                                                                                            \
  }
