// One unit, in one pass over its rows: moments, SSIM, partial derivatives and gradients, each a few rows behind the
// last.
//
//   rows of x, y  ->  ring of u, v  ->  filter u, v, u^2, v^2 down, then along  ->  SSIM and its partials
//   ->  ring of partials  ->  filter down, then along  ->  gradient rows, 5 behind the partials, in the ring of u, v
//
// A row is a sequence of columns, a column a few vectors, a vector one pixel of each lane's band (unit.h). Several
// rows, and along a row several columns, go together, so that a filter reads each value once for all of its results.
// Rows are counted from each lane's row0, columns from the first one with partials. Included once for each instruction
// set.
#pragma once

#include "bands.h"
#include "filters.h"
#include "mirror.h"
#include "unit.h"

namespace ssim {
inline namespace SSIM_ISA {

template <class T, Form form, int sides>  // sides: 0 no gradient, 1 of x, 2 of x and y
class UnitKernel {
  using V = typename Simd<T>::V;
  using Rows = ssim::Rows<T>;
  static constexpr int lanes = kLanes<T>;
  static constexpr bool separate = form == Form::kSeparate;
  static constexpr int moments = separate ? 5 : 4;
  static constexpr int maps = sides == 0 ? 1 : sides == 1 ? 3 : separate ? 5 : 4;
  static constexpr int64_t pixel = 2 * lanes, partial = maps * lanes;  // from a column of a ring to the next, in T

 public:
  explicit UnitKernel(UnitCall<T>& call)
      : call_(call),
        p_(*call.problem),
        level_(*call.level),
        unit_(call.unit),
        bands_(call.unit, call.level->h),
        gain_(call.problem->taps, separate),
        seeded_(level_.seed.data != nullptr) {
    margin_ = p_.padding == Padding::kValid ? p_.window_radius : 0;
    reflect_ = p_.padding == Padding::kReflect;
    for (int k = 0; k < kRadius; ++k) taps_[k] = V{} + gain_.taps[k];
    set_constants();
    const int64_t reach = sides ? kRadius : 0;
    origin_ = larger(0, unit_.col0 - reach);
    const int64_t end = smaller(level_.w, unit_.col1 + reach);
    width_ = end - origin_;
    own0_ = unit_.col0 - origin_, own1_ = unit_.col1 - origin_;
    load0_ = larger(0, origin_ - kRadius) - origin_;
    load1_ = smaller(level_.w, end + kRadius) - origin_;
    keep0_ = larger(0, margin_ - origin_), keep1_ = smaller(width_, level_.w - margin_ - origin_);
    lay_out_lanes();
    by_l1_ = static_cast<T>(level_.l1 * level_.grad_scale);
    lay_out_memory();
  }

  void run() {
    const int64_t end = unit_.rows + (sides ? kRadius : 0), first = first_row(end);
    int64_t loaded = first - kRadius;
    bool begun = false;
    for (int64_t q = first, step = 0; q < end; q += kRows, ++step) {
      const int64_t fresh = loaded;
      for (; loaded < q + kRows + kRadius; ++loaded) load_row(loaded, pixels_row(loaded - first));
      if (reflect_) {
        mirror_pixels(q - kRadius, smaller(0, loaded), first);
        mirror_pixels(larger(0, fresh), loaded, first);
      }
      // Both rings turn alike: each window begins where its ring did, `phase` pairs of rows ago.
      const int phase = static_cast<int>(step * (kRows / 2) % kPhases);
      pixel_rows(q, q - first, phase);
      if (sides && reflect_) reflect_partials(q, q - first);
      if (!has_gradients(q)) continue;
      if (!begun) begin_partials(q, first);
      begun = true;
      gradient_rows(q - kRadius, q - first, phase);
    }
  }

 private:
  // ---- constants ----

  // Gain says why. The square roots of the separate form have constants of their own, so its moments are divided.
  void set_constants() {
    Problem p = p_;
    if (!separate) p.c1 *= gain_.gain * gain_.gain, p.c2 *= gain_.gain * gain_.gain;
    constants_ = p.template constants<T>();
    moment_factor_ = V{} + gain_.factor;
    partial_factor_ = V{} + (separate ? T(1) : gain_.factor);
    factor_ = static_cast<T>(level_.slope * level_.grad_scale * kGradientFactor * (separate ? 1 / gain_.gain : 1));
  }

  // ---- lanes ----

  // Where to begin, so that as few steps as possible have something to filter down.
  int64_t first_row(int64_t end) const {
    const int64_t first = sides && bands_.highest > 0 ? -kRadius : 0;
    const int64_t pixels0 = larger(first, margin_ - bands_.highest),
                  pixels1 = smaller(end, level_.h - margin_ - bands_.lowest);
    int64_t best = first, least = INT64_MAX;
    for (int64_t start = first; start > first - kRows; --start) {
      int64_t time = 0;
      for (int64_t q = start; q < end; q += kRows) {
        if (q < pixels1 && q + kRows > pixels0) time += moments;
        if (has_gradients(q)) time += maps;
      }
      if (time < least) best = start, least = time;
    }
    return best;
  }

  // Whether the step that begins at row q reaches rows of the gradient.
  bool has_gradients(int64_t q) const {
    const int64_t p = q - kRadius;
    return sides != 0 && p + kRows > 0 && p < unit_.rows;
  }

  void lay_out_lanes() {
    for (int i = 0; i < lanes; ++i) {
      const int from = i < unit_.count ? i : 0;
      low_x_[i] = static_cast<T>(call_.range_x[from].low), scale_x_[i] = static_cast<T>(call_.range_x[from].scale);
      low_y_[i] = static_cast<T>(call_.range_y[from].low), scale_y_[i] = static_cast<T>(call_.range_y[from].scale);
    }
    x_ = {bands_, level_.x}, y_ = {bands_, level_.y};
    if (seeded_) seed_ = {bands_, level_.seed};
    if (level_.map.data) map_ = {bands_, level_.map};
    if (sides) grad_x_ = {bands_, level_.grad_x};
    if (sides == 2) grad_y_ = {bands_, level_.grad_y};
    by_x_ = scale_x_ * factor_, by_y_ = scale_y_ * factor_;
  }

  // ---- memory ----

  static constexpr size_t bytes(int64_t vectors) { return static_cast<size_t>(vectors) * SSIM_VECTOR_BYTES; }

  void lay_out_memory() {
    T* next = static_cast<T*>(call_.workspace);
    const auto take = [&](int64_t elements, int64_t before) {  // so many lie in front of the pointer
      T* begin = next + before;
      next += elements;
      return begin;
    };
    pixels_ring_ = take(kRing * kPixelStride, kRadius * pixel);
    partials_ring_ = take(kRing * kPartialStride, kRadius * partial);
    filtered_ = take(kFiltered, 0);
    seeds_ = take(kRows * kSpan * lanes, 0);
    scratch_ = filtered_;  // never in use at the same time
    static_assert(kFiltered >= 2 * kSpan * lanes);
    static_assert((kRing * (kPixelStride + kPartialStride) + kFiltered + kRows * kSpan * lanes) *
                      static_cast<int64_t>(sizeof(T)) <=
                  kWorkspaceBytes);
  }

  static constexpr int64_t kPixelStride = kRowStride<T, 2>, kPartialStride = kRowStride<T, maps>;
  static constexpr int64_t kFiltered = kSlots * kSlotStride<T, (moments > maps ? moments : maps)>;

  // Rows of the rings by their distance from the first with partials.
  T* pixels_row(int64_t at) const { return pixels_ring_ + (at + kRadius) % kRing * kPixelStride; }
  T* partials_row(int64_t at) const { return partials_ring_ + (at + 2 * kRadius) % kRing * kPartialStride; }
  T* seeds_row(int i) const { return seeds_ + i * kSpan * lanes; }

  void clear_partials(T* row) const { __builtin_memset(row + keep0_ * partial, 0, bytes((keep1_ - keep0_) * maps)); }

  // The rows that the first rows of the gradient see above those with partials.
  void begin_partials(int64_t q, int64_t first) const {
    if (reflect_) {
      for (int64_t row = -kRadius; row < 0; ++row) mirror_partials(row, first);
    } else {
      for (int64_t at = q - first - 2 * kRadius; at < 0; ++at) clear_partials(partials_row(at));
    }
  }

  void mirror_partials(int64_t row, int64_t first) const {
    mirror_row<T>(bands_, row, width_ * maps, [&](int64_t r) { return partials_row(r - first); });
  }

  // Small planes stay in the cache of themselves.
  int64_t fetch_end(int64_t end, int64_t rows) const {
    const bool small = unit_.rows * level_.w * lanes * static_cast<int64_t>(sizeof(T)) <= kSmallPlanes;
    return small ? 0 : smaller(end, rows);
  }

  // Seeds of row `row` of a map, from the map's column `column` on.
  void read_seeds(int64_t row, int64_t height, int64_t column, int64_t count, T* to) {
    access().template read<1>({&seed_}, row, height, column, count,
                              [&](int64_t j, const V* v) __attribute__((always_inline)) { store(to + j * lanes, *v); });
  }

  BandAccess<T> access() const { return {bands_, call_.access, scratch_}; }

  // Lanes hold the sums of a row, few enough pixels to stay exact to their last bits; rows add up in double.
  void add(double UnitSums::* sum, V values, const Rows& inside, double factor = 1) {
    for (int i = 0; i < unit_.count; ++i)
      if (inside.has(i)) call_.sums[i].*sum += values[i] * factor;
  }

  // ---- x and y ----

  // Row `row` of u and v. Lanes outside of their planes have zeros, or whatever before they are mirrored.
  void load_row(int64_t row, T* out) {
    const Rows inside = bands_.rows(row, 0);
    T* own = out + load0_ * pixel;
    const int64_t column = origin_ + load0_, count = load1_ - load0_;
    if (!inside.any) {
      if (!reflect_) __builtin_memset(own, 0, bytes(count * 2));
      return;
    }
    const V low_x = low_x_, scale_x = scale_x_, low_y = low_y_, scale_y = scale_y_;
    access().template read<2>({&x_, &y_}, row, level_.h, column, count,
                              [&](int64_t j, const V* v) __attribute__((always_inline)) {
                                const V x = (v[0] - low_x) * scale_x, y = (v[1] - low_y) * scale_y;
                                store(own + j * pixel, x + y);
                                store(own + j * pixel + lanes, x - y);
                              });
    if (!inside.all && !reflect_)
      for (T* to = own; to != own + count * pixel; to += lanes) store(to, keep<T>(load(to), inside.mask));
    if (level_.l1 != 0 && row >= 0 && row < unit_.rows) sum_l1(row, inside, out);
  }

  // Rows [begin, end) of u and v, where they lie outside. What they mirror may come later than they do (above a plane),
  // but no later than it is needed.
  void mirror_pixels(int64_t begin, int64_t end, int64_t first) const {
    for (int64_t row = begin; row < end; ++row)
      if (!bands_.rows(row, 0).all)
        mirror_row<T>(bands_, row, (load1_ - load0_) * 2,
                      [&](int64_t r) { return pixels_row(r - first) + load0_ * pixel; });
  }

  void sum_l1(int64_t row, const Rows& inside, const T* pixels) {
    if (!inside.any) return;
    if (seeded_) read_seeds(row, level_.h, origin_ + own0_, own1_ - own0_, seeds_);
    V sum{};
    for (int64_t c = own0_; c < own1_; ++c) {
      const V v = load(pixels + c * pixel + lanes);
      const V distance = v < T(0) ? -v : v;
      sum += seeded_ ? distance * load(seeds_ + (c - own0_) * lanes) : distance;
    }
    add(&UnitSums::l1, sum, inside, p_.data_range);
  }

  // ---- filters ----

  // Filters a window of a ring's rows down and then along, a few columns at a time: calls group(slot, columns, c, n)
  // for columns [c, c + n) of the results [first, last), whose window begins at filtered column `slot`. `columns` of
  // them are to be computed, of which n lie before `last`; `slot` and `columns` are integral constants. Only columns
  // [begin, end) of the ring have something; outside of the map are zeros, or mirror images.
  template <Column column, int count, class Group>
  SSIM_INLINE void filter_groups(int phase, const T* ring, int64_t begin, int64_t end, int64_t first, int64_t last,
                                 const Group& group) {
    int64_t done = first - kRadius;  // columns filtered down
    const auto slot = [&](int64_t c) { return c - first + kRadius; };
    for (int64_t c = first; c < last; c += kColumns) {
      const int64_t n = smaller(kColumns, last - c);
      const auto columns = [&](auto slot_of_window) __attribute__((always_inline)) {
        if (kFewColumns < kColumns && n <= kFewColumns)
          group(slot_of_window, std::integral_constant<int, kFewColumns>(), c, n);
        else
          group(slot_of_window, std::integral_constant<int, kColumns>(), c, n);
      };
      const int64_t need = c + (n <= kFewColumns ? kFewColumns : kColumns) + kRadius;
      const int64_t from = smaller(larger(done, begin), need), to = larger(from, smaller(need, end));
      filter_down<T, column, count>(phase, ring, from, to, filtered_, slot(from), taps_);
      if (reflect_) {
        if (column == Column::kPartials) double_filtered<count>(from, to, slot(0));
        mirror_filtered<count>(done, from, slot(0));
        mirror_filtered<count>(to, need, slot(0));
      } else {
        clear_filtered<count>(slot(done), slot(from));
        clear_filtered<count>(slot(to), slot(need));
      }
      done = need;
      constexpr int groups = kSlots / kColumns;
      static_assert(groups == 3 || groups == 4);
      switch ((c - first) / kColumns % groups) {
        case 0: columns(std::integral_constant<int, 0>()); break;
        case 1: columns(std::integral_constant<int, kColumns>()); break;
        case 2: columns(std::integral_constant<int, 2 * kColumns>()); break;
        default:
          if constexpr (groups == 4) columns(std::integral_constant<int, 3 * kColumns>());
      }
    }
  }

  // Filtered column `slot` of row i.
  template <int count>
  T* filtered(int64_t slot, int i) const {
    return filtered_ + slot % kSlots * kSlotStride<T, count> + i * count * lanes;
  }

  template <int count>
  void clear_filtered(int64_t begin, int64_t end) const {
    const V zero = in_register(V{});  // unknown to the compiler, which would call memset for these few
    for (int64_t slot = begin; slot < end; ++slot) {
      T* const to = filtered<count>(slot, 0);
      for (int k = 0; k < kRows * count; ++k) store(to + k * lanes, zero);
    }
  }

  // Calls change(c) for the columns at an end of their rows, of [begin, end): mirror.h.
  template <class Change>
  void for_ends(int64_t begin, int64_t end, const Change& change) const {
    for (const int64_t c : {-origin_, level_.w - 1 - origin_})
      if (c >= begin && c < end && level_.w > 1) change(c);
  }

  // Column 0 is at `slot0`.
  template <int count>
  void double_filtered(int64_t begin, int64_t end, int64_t slot0) const {
    for_ends(begin, end, [&](int64_t c) {
      T* const to = filtered<count>(slot0 + c, 0);
      for (int k = 0; k < kRows * count; ++k) store(to + k * lanes, load(to + k * lanes) * T(2));
    });
  }

  // Columns [begin, end) outside of the map, as far as filters reach.
  template <int count>
  void mirror_filtered(int64_t begin, int64_t end, int64_t slot0) const {
    for (int64_t c = begin; c < smaller(end, level_.w + kRadius - origin_); ++c) {
      const T* const from = filtered<count>(slot0 + mirrored(origin_ + c, level_.w) - origin_, 0);
      T* const to = filtered<count>(slot0 + c, 0);
      for (int k = 0; k < kRows * count; ++k) store(to + k * lanes, load(from + k * lanes));
    }
  }

  // ---- SSIM ----

  // SSIM and its partials of rows q to q + kRows - 1; `at` is q's distance from the first row with partials.
  void pixel_rows(int64_t q, int64_t at, int phase) {
    if (keep0_ >= keep1_) return;  // without gradients, a strip may lie where "valid" has no pixels
    Rows inside[kRows];
    bool any = false;
    for (int i = 0; i < kRows; ++i) {
      inside[i] = bands_.rows(q + i, margin_);
      any |= inside[i].any;
      if (sides && !reflect_ && !inside[i].any) clear_partials(partials_row(at + i));
      if (seeded_ && inside[i].any)  // a map's rows begin `margin` rows below the plane's
        read_seeds(q + i - margin_, level_.h - 2 * margin_, origin_ + keep0_ - margin_, keep1_ - keep0_, seeds_row(i));
    }
    if (!any) return;
    V sums[kRows] = {}, seeds[kRows] = {};
    const int64_t next = larger(0, q + kRows + kRadius), end = fetch_end(next + kRows, level_.h - bands_.highest);
    const int64_t parts = (keep1_ - keep0_ + kColumns - 1) / kColumns;
    Fetch<T> x(x_, next, end, origin_ + load0_, load1_ - load0_, parts);
    Fetch<T> y(y_, next, end, origin_ + load0_, load1_ - load0_, parts);
    filter_groups<Column::kPixel, moments>(
        phase, pixels_ring_, load0_, load1_, keep0_, keep1_,
        [&](auto slot, auto columns, int64_t c, int64_t n) __attribute__((always_inline)) {
          x.some();
          y.some();
          for (int i = 0; i < kRows; ++i) {
            if (!inside[i].any) continue;
            V m[moments][columns()];
            filter_along<T, slot()>(filtered_ + i * moments * lanes, taps_, m);
            const bool own_row = q + i >= 0 && q + i < unit_.rows;
            T* partials = partials_row(at + i) + c * partial;
            if (inside[i].all && !seeded_)
              pixels<true>(m, n, inside[i], own_row ? c : own1_, partials, nullptr, sums[i], seeds[i]);
            else
              pixels<false>(m, n, inside[i], own_row ? c : own1_, partials, seeds_row(i) + (c - keep0_) * lanes,
                            sums[i], seeds[i]);
          }
        });
    for (int i = 0; i < kRows; ++i) {
      // Without gradients a unit has no pixels but its own.
      if (!sides && level_.map.data && inside[i].any)
        access().write(map_, q + i - margin_, inside[i], origin_ + keep0_ - margin_, keep1_ - keep0_,
                       partials_row(at + i) + keep0_ * partial, maps);
      if (!inside[i].any || q + i < 0 || q + i >= unit_.rows) continue;
      add(&UnitSums::ssim, sums[i], inside[i]);
      if (!seeded_) seeds[i] += static_cast<T>(larger(0, smaller(own1_, keep1_) - larger(own0_, keep0_)));
      add(&UnitSums::seed, seeds[i], inside[i]);
    }
  }

  // What mirror.h says of the partials of rows q to q + kRows - 1. (Those above the first are mirrored once they may
  // be.)
  void reflect_partials(int64_t q, int64_t at) const {
    for (int i = 0; i < kRows; ++i) {
      V twice;
      if (!end_factors<T>(bands_, q + i, T(2), twice)) continue;
      T* const row = partials_row(at + i);
      for (int64_t j = 0; j < width_ * maps; ++j) store(row + j * lanes, load(row + j * lanes) * twice);
    }
    for (int i = 0; i < kRows; ++i)
      if (q + i >= 0 && !bands_.rows(q + i, 0).all) mirror_partials(q + i, q - at);
  }

  // `n` pixels of a row, from their moments; `simple`: of all lanes, and without weights. Those of columns
  // [own0_, own1_) are summed, counted from `column`.
  template <bool simple, int columns>
  SSIM_INLINE void pixels(const V (&m)[moments][columns], int64_t n, const Rows& inside, int64_t column, T* partials,
                          const T* weights, V& sum, V& seeds) const {
    const Constants<T> constants = constants_;
    const V g = moment_factor_;
#pragma GCC unroll 1
    for (int64_t t = 0; t < n; ++t, partials += partial) {
      Pixel<V> r;
      if constexpr (separate)
        r = separate_pixel(g * m[0][t], g * m[1][t], g * m[2][t], g * m[3][t], g * m[4][t], constants);
      else
        r = paired_pixel<form>(m[0][t], m[1][t], g * m[2][t], g * m[3][t], constants);
      V weight{};
      if (!simple && seeded_) weight = load(weights + t * lanes);
      if (static_cast<uint64_t>(column + t - own0_) < static_cast<uint64_t>(own1_ - own0_)) {
        sum += !simple && seeded_ ? r.value * weight : r.value;
        if (!simple && seeded_) seeds += weight;
      }
      V map[maps];
      if constexpr (sides == 0) {
        store(partials, r.value);
        continue;
      } else if constexpr (sides == 1) {
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

  // ---- gradients ----

  // The gradients of rows p to p + kRows - 1, 5 behind those of `at` and `phase`. They take the place of u and v, which
  // no later row needs.
  void gradient_rows(int64_t p, int64_t at, int phase) {
    Rows inside[kRows];
    V halves[kRows];
    for (int i = 0; i < kRows; ++i) {
      inside[i] = bands_.rows(p + i, 0);
      inside[i].any = inside[i].any && p + i >= 0 && p + i < unit_.rows;
      if (reflect_) end_factors<T>(bands_, p + i, T(0.5), halves[i]);
      if (by_l1_ != 0 && seeded_ && inside[i].any)
        read_seeds(p + i, level_.h, origin_ + own0_, own1_ - own0_, seeds_row(i));
    }
    V grads[kRows][2] = {}, grad_values[kRows][2] = {};
    const bool simple = sides == 1 && by_l1_ == 0 && !tracks_extremes();
    const int64_t end = fetch_end(p + kRows, smaller(unit_.rows, level_.h - bands_.highest));
    Fetch<T> of_x(grad_x_, larger(0, p), end, origin_ + own0_, own1_ - own0_,
                  (own1_ - own0_ + kColumns - 1) / kColumns);
    filter_groups<Column::kPartials, maps>(
        phase, partials_ring_, keep0_, keep1_, own0_, own1_,
        [&](auto slot, auto columns, int64_t c, int64_t n) __attribute__((always_inline)) {
          of_x.some();
          for (int i = 0; i < kRows; ++i) {
            if (!inside[i].any) continue;
            V f[maps][columns()];
            filter_along<T, slot()>(filtered_ + i * maps * lanes, taps_, f);
            T* const row = pixels_row(at + i - kRadius) + c * pixel;
            if (simple)
              simple_gradient(f, reflect_ ? by_x_ * halves[i] : by_x_, row);
            else
              gradient(f, halves[i], c, n, row, seeds_row(i) + (c - own0_) * lanes, grads[i], grad_values[i]);
          }
        });
    for (int i = 0; i < kRows; ++i) {
      if (!inside[i].any) continue;
      T* const values = pixels_row(at + i - kRadius) + own0_ * pixel;
      if (simple && reflect_) halve_ends(values);
      access().write(grad_x_, p + i, inside[i], origin_ + own0_, own1_ - own0_, values, 2);
      if (sides == 2) access().write(grad_y_, p + i, inside[i], origin_ + own0_, own1_ - own0_, values + lanes, 2);
      if (!tracks_extremes()) continue;
      for (int lane = 0; lane < unit_.count; ++lane) {
        if (!inside[i].has(lane)) continue;
        for (int side = 0; side < sides; ++side) {
          call_.sums[lane].grad[side] += grads[i][side][lane];
          call_.sums[lane].grad_value[side] += grad_values[i][side][lane] * 0.5;  // u + v = 2 x'
        }
      }
    }
  }

  bool tracks_extremes() const { return p_.normalize != Normalize::kNone && !p_.detach_range; }

  // A few columns of a row of u and v, from the filtered partials; those past the last are in the row's margin, or of a
  // neighbour and no longer needed.
  template <int columns>
  SSIM_INLINE void simple_gradient(const V (&f)[maps][columns], V by_x, T* row) const {
    const V factor = partial_factor_;
#pragma GCC unroll 8
    for (int t = 0; t < columns; ++t, row += pixel) {
      const V of_squares = load(row) * f[maps > 1][t] + load(row + lanes) * f[maps - 1][t];
      store(row, (f[0][t] + factor * of_squares) * by_x);
    }
  }

  // Those of a row's own columns.
  void halve_ends(T* own) const {
    for_ends(own0_, own1_, [&](int64_t c) {
      T* const to = own + (c - own0_) * pixel;
      store(to, load(to) * T(0.5));
    });
  }

  // `n` of them, with all that a gradient may have besides; c is the first one's column. What comes from "reflect" is
  // multiplied by `halves`.
  template <int columns>
  void gradient(V (&f)[maps][columns], V halves, int64_t c, int64_t n, T* row, const T* weights, V (&grads)[2],
                V (&grad_values)[2]) const {
    const V by_x = by_x_, by_y = by_y_, factor = partial_factor_;
    const T by_l1 = by_l1_;
    const bool track = tracks_extremes();
    for (int64_t t = 0; t < n; ++t, row += pixel) {
      if (reflect_) {
        const V share = at_end(origin_ + c + t, level_.w) ? halves * T(0.5) : halves;
        for (int k = 0; k < maps; ++k) f[k][t] *= share;
      }
      const V u = load(row), v = load(row + lanes);
      V of_l1{};
      if (by_l1 != 0) {
        of_l1 = v > T(0) ? V{} + by_l1 : (v < T(0) ? V{} - by_l1 : v * T(0));
        if (seeded_) of_l1 *= load(weights + t * lanes);
      }
      if constexpr (sides == 1) {
        V of_x = (f[0][t] + factor * (u * f[1][t] + v * f[2][t])) * by_x;
        if (by_l1 != 0) of_x += of_l1;
        store(row, of_x);
        if (track) grads[0] += of_x, grad_values[0] += of_x * (u + v);
      } else if constexpr (sides == 2) {
        V of_u = u * f[2][t], of_v = v * f[3][t];
        if constexpr (separate) of_u += v * f[4][t], of_v += u * f[4][t];
        of_u = f[0][t] + factor * of_u, of_v = f[1][t] + factor * of_v;
        const V of_x = (of_u + of_v) * by_x + of_l1, of_y = (of_u - of_v) * by_y - of_l1;
        store(row, of_x);
        store(row + lanes, of_y);
        if (track) {
          grads[0] += of_x, grad_values[0] += of_x * (u + v);
          grads[1] += of_y, grad_values[1] += of_y * (u - v);
        }
      }
    }
  }

  UnitCall<T>& call_;
  const Problem& p_;
  const Level& level_;
  const Unit& unit_;
  const Bands<T> bands_;
  const Gain<T> gain_;
  const bool seeded_;
  int64_t margin_;          // pixels that "valid" leaves out
  int64_t origin_, width_;  // first column with partials, and their number
  int64_t own0_, own1_;     // the unit's own columns, local
  int64_t load0_, load1_;   // columns of x and y that are read, local
  int64_t keep0_, keep1_;   // columns that are in the map, local
  bool reflect_;
  BandTensor<T> x_, y_, seed_, map_, grad_x_, grad_y_;
  V low_x_, scale_x_, low_y_, scale_y_;
  V moment_factor_;   // of the moments that are not as they should be, or of all
  V partial_factor_;  // of the filtered partials by squares
  T factor_;          // of a gradient
  V by_x_, by_y_;     // with the scale of x and y
  T by_l1_;
  V taps_[kRadius];
  Constants<T> constants_;
  T *pixels_ring_, *partials_ring_, *filtered_, *seeds_, *scratch_;
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
