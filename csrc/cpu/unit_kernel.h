// One unit, in one pass over its rows: moments, SSIM, partial derivatives and gradients, each a few rows behind the
// last.
//
//   rows of x, y  ->  ring of u, v  ->  vertical filter  ->  horizontal filter  ->  SSIM and its partials  ->  ring
//   ring of partials  ->  vertical filter  ->  horizontal filter  ->  gradient rows, 5 behind the partials
//
// Two rows go together, so that the vertical filters read 12 rows for two results instead of 22. Columns are local: 0
// is the first column of partials. Included once for each instruction set.
#pragma once

#include "simd.h"
#include "unit.h"

namespace ssim {
inline namespace SSIM_ISA {

constexpr int kRing = 16;  // rows held; 12 are in use at a time
constexpr int kPrefetchRows = 4;
constexpr int kWindowRows = kTaps + 1;  // rows that two neighbouring results see

SSIM_INLINE int64_t mirrored(int64_t position, int64_t length) {  // reflect_index of fused_ssim/window.py
  if (position >= 0 && position < length) return position;
  const int64_t once = position < 0 ? -position : 2 * (length - 1) - position;
  if (once >= 0 && once < length) return once;  // nearly always, and without a division
  if (length == 1) return 0;
  const int64_t period = 2 * (length - 1);
  position %= period;
  if (position < 0) position += period;
  return position < length ? position : period - position;
}

SSIM_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SSIM_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T, Form form, int sides>  // sides: 0 no gradient, 1 of x, 2 of x and y
class UnitKernel {
  using V = typename Simd<T>::V;
  static constexpr int lanes = kLanes<T>;
  static constexpr bool separate = form == Form::kSeparate;
  static constexpr int pad = (kRadius + lanes - 1) / lanes * lanes;  // columns of margin on either side of a row
  static constexpr int moments = separate ? 5 : 4;
  static constexpr int maps = sides == 0 ? 0 : sides == 1 ? 3 : separate ? 5 : 4;

 public:
  SSIM_INLINE explicit UnitKernel(const UnitCall<T>& call)
      : call_(call), p_(*call.problem), level_(*call.level), unit_(call.unit) {
    const int64_t margin = p_.padding == Padding::kValid ? p_.window_radius : 0;
    margin_ = margin;
    for (int i = 0; i < kTaps; ++i) taps_[i] = static_cast<T>(p_.taps[i]);
    constants_ = {static_cast<T>(p_.c1), static_cast<T>(p_.c2), static_cast<T>(p_.alpha), static_cast<T>(p_.beta),
                  static_cast<T>(p_.gamma)};
    const int64_t reach = sides ? kRadius : 0;
    first_row_ = larger(larger(0, unit_.row0 - reach), margin);
    end_row_ = smaller(smaller(level_.h, unit_.row1 + reach), level_.h - margin);
    origin_ = larger(0, unit_.col0 - reach);
    const int64_t end = smaller(level_.w, unit_.col1 + reach);
    width_ = end - origin_;
    left_ = larger(0, origin_ - kRadius) - origin_;
    right_ = smaller(level_.w, end + kRadius) - origin_;
    padded_ = (width_ + lanes - 1) / lanes * lanes;
    keep0_ = larger(0, margin - origin_);
    keep1_ = smaller(width_, level_.w - margin - origin_);
    own0_ = larger(unit_.col0 - origin_, keep0_);
    own1_ = smaller(unit_.col1 - origin_, keep1_);
    mirror_left_ = p_.padding == Padding::kReflect && origin_ == 0;
    mirror_right_ = p_.padding == Padding::kReflect && end == level_.w;
    left_window_ = (kSources + lanes - 1) / lanes * lanes;
    right_source_ = larger(0, width_ - kSources);
    right_window_ = right_source_ / lanes * lanes;
    lay_out();
  }

  SSIM_INLINE UnitSums run() {
    int64_t loaded = larger(0, larger(first_row_, 0) - kRadius);
    const int64_t end_load = smaller(level_.h, end_row_ + kRadius);
    // "valid" needs rows of x and y outside its partials too, for their gradient.
    const int64_t first = smaller(first_row_, larger(0, unit_.row0 - (sides ? kRadius : 0)));
    const int64_t start_load = smaller(loaded, larger(0, unit_.row0));
    const int64_t stop_load = larger(end_load, sides || level_.l1 != 0 ? unit_.row1 : 0);
    loaded = start_load;
    for (int64_t q = first; q < (sides ? unit_.row1 + kRadius : larger(end_row_, unit_.row1)); q += 2) {
      for (; loaded < stop_load && loaded <= q + kRadius + 1; ++loaded) load_row(loaded);
      if (q + 1 >= first_row_ && q < end_row_) {
        vertical_moments(q);
        for (int i = 0; i < 2; ++i)
          if (q + i >= first_row_ && q + i < end_row_) pixels(q + i, i);
      }
      if (sides == 0) continue;
      const int64_t p = q - kRadius;
      if (p + 1 < unit_.row0 || p >= unit_.row1) continue;
      vertical_partials(p);
      for (int i = 0; i < 2; ++i)
        if (p + i >= unit_.row0 && p + i < unit_.row1) gradient(p + i, i);
    }
    flush_sums();
    if (!level_.seed.data) sums_.seed = static_cast<double>(counted_);
    return sums_;
  }

 private:
  // ---- memory ----

  SSIM_INLINE void lay_out() {
    stride_ = pad + padded_ + pad;
    T* next = static_cast<T*>(call_.workspace->memory) + pad;
    const auto rows = [&](int64_t count) {
      T* begin = next;
      next += count * stride_;
      return begin;
    };
    u_ = rows(kRing), v_ = rows(kRing);
    zero_ = rows(1);
    filtered_ = rows(2 * 5);
    partial_ = rows(kRing * 5);
    seed_ = rows(1), input_x_ = rows(1), input_y_ = rows(1), output_ = rows(1);
    next += pad;
    edges_ = reinterpret_cast<Edges*>(next);
    next += sizeof(Edges) / sizeof(T);
    Workspace& w = *call_.workspace;
    if (w.left == left_ && w.width == width_ && w.right == right_ && w.mirror_left == mirror_left_ &&
        w.mirror_right == mirror_right_)
      return;
    // Nobody writes other than zeros to margins, and equal units share their edge tables: only another shape needs
    // this.
    __builtin_memset(w.memory, 0, static_cast<size_t>(next - static_cast<T*>(w.memory)) * sizeof(T));
    if (mirror_left_ || mirror_right_) make_edges();
    w.left = left_, w.width = width_, w.right = right_;
    w.mirror_left = mirror_left_, w.mirror_right = mirror_right_;
  }

  SSIM_INLINE T* u_row(int64_t row) const { return u_ + (row & (kRing - 1)) * stride_; }
  SSIM_INLINE T* v_row(int64_t row) const { return v_ + (row & (kRing - 1)) * stride_; }
  SSIM_INLINE T* partial_row(int64_t row, int map) const {
    return partial_ + ((row & (kRing - 1)) * 5 + map) * stride_;
  }
  SSIM_INLINE T* filtered_row(int i, int m) const { return filtered_ + (i * 5 + m) * stride_; }

  SSIM_INLINE static int64_t at(const View& view, int64_t n, int64_t c, int64_t h, int64_t w) {
    return n * view.stride_n + c * view.stride_c + h * view.stride_h + w * view.stride_w;
  }

  static constexpr DType native = sizeof(T) == 4 ? DType::kFloat32 : DType::kFloat64;

  // `count` pixels of a tensor from (row, column) on: where they are, if they lie dense, else a copy of them.
  SSIM_INLINE const T* read(const View& view, int64_t row, int64_t column, int64_t count, T* copy) const {
    const int64_t offset = at(view, unit_.n, unit_.c, row, column);
    if (view.dtype == native && view.stride_w == 1) return static_cast<const T*>(view.data) + offset;
    call_.access.load(copy, view, offset, count);
    return copy;
  }

  // ---- stages ----

  SSIM_INLINE void load_row(int64_t row) {
    const T* x = read(level_.x, row, origin_ + left_, right_ - left_, input_x_);
    const T* y = read(level_.y, row, origin_ + left_, right_ - left_, input_y_);
    const T low_x = static_cast<T>(call_.range_x.low), scale_x = static_cast<T>(call_.range_x.scale);
    const T low_y = static_cast<T>(call_.range_y.low), scale_y = static_cast<T>(call_.range_y.scale);
    T *u = u_row(row) + left_, *v = v_row(row) + left_;
    const int64_t count = right_ - left_;
    // A dense row further down is likely to lie behind this one; a prefetch of nothing does no harm.
    const int64_t ahead_x = level_.x.stride_h * kPrefetchRows, ahead_y = level_.y.stride_h * kPrefetchRows;
    int64_t j = 0;
    for (; j + lanes <= count; j += lanes) {
      __builtin_prefetch(x + j + ahead_x);
      __builtin_prefetch(y + j + ahead_y);
      const V a = (load_unaligned(x + j) - low_x) * scale_x, b = (load_unaligned(y + j) - low_y) * scale_y;
      store_unaligned(u + j, a + b);
      store_unaligned(v + j, a - b);
    }
    if (j < count) {
      const int rest = static_cast<int>(count - j);
      const V a = (load_first(x + j, rest) - low_x) * scale_x, b = (load_first(y + j, rest) - low_y) * scale_y;
      store_lanes(u + j, a + b, 0, rest);
      store_lanes(v + j, a - b, 0, rest);
    }
    if (level_.l1 != 0 && row >= unit_.row0 && row < unit_.row1) sum_l1(row);
  }

  SSIM_INLINE void sum_l1(int64_t row) {
    const T* v = v_row(row);
    const int64_t begin = unit_.col0 - origin_, end = unit_.col1 - origin_;
    const T* seed = level_.seed.data ? read(level_.seed, row, unit_.col0, end - begin, seed_) : nullptr;
    V sum{};
    for (int64_t j = begin; j < end; j += lanes) {
      const int rest = static_cast<int>(smaller(lanes, end - j));
      V value = load_first(v + j, rest);
      value = value < T(0) ? -value : value;
      sum += seed ? value * load_first(seed + (j - begin), rest) : value;
    }
    sums_.l1 += total(sum) * p_.data_range;
  }

  SSIM_INLINE static double total(V v) {
    double sum = 0;
    for (int i = 0; i < lanes; ++i) sum += v[i];
    return sum;
  }

  // Two results of the vertical filter from the 12 rows in r.
  SSIM_INLINE void filter_columns(const V* r, V& first, V& second) const {
    first = taps_[5] * r[5];
    second = taps_[5] * r[6];
#pragma GCC unroll 5
    for (int k = 0; k < 5; ++k) {
      first += taps_[k] * (r[k] + r[10 - k]);
      second += taps_[k] * (r[k + 1] + r[11 - k]);
    }
  }

  // The vertically filtered u, v, u^2, v^2 (and uv) of rows q and q + 1.
  SSIM_INLINE void vertical_moments(int64_t q) {
    const T *u[kWindowRows], *v[kWindowRows];
    for (int k = 0; k < kWindowRows; ++k) {
      int64_t row = q + k - kRadius;
      const bool inside = row >= 0 && row < level_.h;
      if (!inside && p_.padding == Padding::kReflect) row = mirrored(row, level_.h);
      const bool there = inside || p_.padding == Padding::kReflect;
      u[k] = there ? u_row(row) : zero_;
      v[k] = there ? v_row(row) : zero_;
    }
    const int64_t begin = left_ < 0 ? -pad : 0;
    for (int64_t j = begin; j < right_; j += lanes) {
      V r[kWindowRows], first, second;
      for (int side = 0; side < 2; ++side) {
        const T** rows = side ? v : u;
#pragma GCC unroll 12
        for (int k = 0; k < kWindowRows; ++k) r[k] = load(rows[k] + j);
        filter_columns(r, first, second);
        store(filtered_row(0, side) + j, first);
        store(filtered_row(1, side) + j, second);
#pragma GCC unroll 12
        for (int k = 0; k < kWindowRows; ++k) r[k] *= r[k];
        filter_columns(r, first, second);
        store(filtered_row(0, 2 + side) + j, first);
        store(filtered_row(1, 2 + side) + j, second);
      }
      if (separate) {
#pragma GCC unroll 12
        for (int k = 0; k < kWindowRows; ++k) r[k] = load(u[k] + j) * load(v[k] + j);
        filter_columns(r, first, second);
        store(filtered_row(0, 4) + j, first);
        store(filtered_row(1, 4) + j, second);
      }
    }
  }

  // SSIM and the partials of row q from its vertically filtered moments.
  SSIM_INLINE void pixels(int64_t q, int i) {
    const bool own_row = q >= unit_.row0 && q < unit_.row1;
    const T* seed = nullptr;
    if (level_.seed.data) {
      // Dense and aligned like the other rows; lanes outside the map are masked below.
      const int64_t begin = keep0_, count = keep1_ - keep0_;
      const T* row = read(level_.seed, q - margin_, origin_ + begin - margin_, count, input_x_);
      __builtin_memcpy(seed_ + begin, row, static_cast<size_t>(count) * sizeof(T));
      seed = seed_;
    }
    V sum = ssim_sum_, seeds = seed_sum_;
    for (int64_t j = 0; j < width_; j += lanes) {
      V m[moments];
      for (int k = 0; k < moments; ++k) m[k] = filter_row(filtered_row(i, k) + j, taps_);
      if (mirror_left_ && j < left_window_) add_edge(m, edges_->gather_left, i, 0, j);
      if (mirror_right_ && j >= right_window_) add_edge(m, edges_->gather_right, i, right_source_, j - right_window_);
      Pixel<V> r;
      if constexpr (separate)
        r = separate_pixel(m[0], m[1], m[2], m[3], m[4], constants_);
      else
        r = paired_pixel<form>(m[0], m[1], m[2], m[3], constants_);
      V value = r.value;
      if (!sides) store(output_ + j, value);
      const bool inner = j >= own0_ && j + lanes <= own1_;
      if (own_row) {
        if (seed) {
          V w = load(seed + j);
          value *= w;
          if (!inner) w = keep_lanes<T>(w, clamped(own0_ - j), clamped(own1_ - j));
          seeds += w;
        }
        sum += inner ? value : keep_lanes<T>(value, clamped(own0_ - j), clamped(own1_ - j));
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
        const bool whole = j >= keep0_ && j + lanes <= keep1_;
        for (int k = 0; k < maps; ++k) {
          if (seed) map[k] *= load(seed + j);
          if (!whole) map[k] = keep_lanes<T>(map[k], clamped(keep0_ - j), clamped(keep1_ - j));
          store(partial_row(q, k) + j, map[k]);
        }
      }
    }
    if (own_row && own1_ > own0_) {
      ssim_sum_ = sum, seed_sum_ = seeds;
      if (++rows_summed_ % kRowsPerSum == 0) flush_sums();
      counted_ += own1_ - own0_;
      if (!sides && level_.map.data)
        write(level_.map, q - margin_, origin_ + own0_ - margin_, output_ + own0_, own1_ - own0_);
    }
  }

  // Lanes add few enough pixels in T to stay exact to its last bits, and go on in double.
  SSIM_INLINE void flush_sums() {
    sums_.ssim += total(ssim_sum_);
    sums_.seed += total(seed_sum_);
    ssim_sum_ = seed_sum_ = V{};
  }

  SSIM_INLINE static int clamped(int64_t lane) { return static_cast<int>(larger(0, smaller(lanes, lane))); }

  SSIM_INLINE void write(const View& view, int64_t row, int64_t column, const T* values, int64_t count) const {
    const int64_t offset = at(view, unit_.n, unit_.c, row, column);
    if (view.dtype == native && view.stride_w == 1)
      __builtin_memcpy(static_cast<T*>(view.data) + offset, values, static_cast<size_t>(count) * sizeof(T));
    else
      call_.access.store(values, view, offset, count);
  }

  // The vertically filtered partials of rows p and p + 1.
  SSIM_INLINE void vertical_partials(int64_t p) {
    const T* rows[kWindowRows];
    for (int map = 0; map < maps; ++map) {
      for (int k = 0; k < kWindowRows; ++k) rows[k] = partial_or_zero(p + k - kRadius, map);
      T *out0 = filtered_row(0, map), *out1 = filtered_row(1, map);
      for (int64_t j = 0; j < padded_; j += lanes) {
        V r[kWindowRows], first, second;
#pragma GCC unroll 12
        for (int k = 0; k < kWindowRows; ++k) r[k] = load(rows[k] + j);
        filter_columns(r, first, second);
        store(out0 + j, first);
        store(out1 + j, second);
      }
      for (int i = 0; i < 2; ++i)  // the moments left values in the margins
        for (int64_t j = 0; j < pad; j += lanes) {
          if (left_ < 0) store(filtered_row(i, map) - pad + j, V{});
          if (right_ > width_) store(filtered_row(i, map) + padded_ + j, V{});
        }
    }
    if (p_.padding != Padding::kReflect) return;
    for (int i = 0; i < 2; ++i)
      if (p + i <= kRadius || p + i >= level_.h - 1 - kRadius) mirrored_partials(p + i, i);
  }

  SSIM_INLINE const T* partial_or_zero(int64_t row, int map) const {
    return row >= first_row_ && row < end_row_ ? partial_row(row, map) : zero_;
  }

  // The same for a row with mirror images: what the filter would give to each of them is added to the row.
  SSIM_INLINE void mirrored_partials(int64_t row, int i) {
    T taps[kTaps];
    for (int k = 0; k < kTaps; ++k) taps[k] = taps_[k];
    const auto add_image = [&](int64_t image) {
      if (mirrored(image, level_.h) != row) return;
      for (int k = 0; k < kTaps; ++k) {
        const int64_t at = image + k - row;  // the tap of `row` that sees what tap k of the image sees
        if (at >= 0 && at < kTaps) taps[at] += taps_[k];
      }
    };
    for (int64_t d = 1; d <= kRadius; ++d) {
      add_image(-d);
      add_image(level_.h - 1 + d);
    }
    for (int map = 0; map < maps; ++map) {
      const T* rows[kTaps];
      for (int k = 0; k < kTaps; ++k) rows[k] = partial_or_zero(row + k - kRadius, map);
      T* out = filtered_row(i, map);
      for (int64_t j = 0; j < padded_; j += lanes) {
        V sum = taps[0] * load(rows[0] + j);
#pragma GCC unroll 10
        for (int k = 1; k < kTaps; ++k) sum += taps[k] * load(rows[k] + j);
        store(out + j, sum);
      }
    }
  }

  // The gradient of row p from its vertically filtered partials.
  SSIM_INLINE void gradient(int64_t p, int i) {
    const T *u = u_row(p), *v = v_row(p);
    const T by_x = static_cast<T>(level_.slope * level_.grad_scale * call_.range_x.scale);
    const T by_y = static_cast<T>(level_.slope * level_.grad_scale * call_.range_y.scale);
    const T by_l1 = static_cast<T>(level_.l1 * level_.grad_scale);
    const int64_t begin = unit_.col0 - origin_, end = unit_.col1 - origin_;
    const T* seed = nullptr;
    if (level_.l1 != 0 && level_.seed.data) {
      const T* row = read(level_.seed, p, unit_.col0, end - begin, input_x_);
      __builtin_memcpy(seed_ + begin, row, static_cast<size_t>(end - begin) * sizeof(T));
      seed = seed_;
    }
    Output to_x(*this, level_.grad_x, p), to_y(*this, level_.grad_y, p);
    V grads[2] = {}, grad_values[2] = {};
    const bool track = p_.normalize != Normalize::kNone && !p_.detach_range;
    for (int64_t j = begin / lanes * lanes; j < end; j += lanes) {
      V f[maps ? maps : 1];
      for (int k = 0; k < maps; ++k) f[k] = filter_row(filtered_row(i, k) + j, taps_);
      if (mirror_left_ && j < left_window_) add_edge(f, edges_->scatter_left, i, 0, j);
      if (mirror_right_ && j >= right_window_) add_edge(f, edges_->scatter_right, i, right_source_, j - right_window_);
      const V a = load(u + j), b = load(v + j);
      V l1{};
      if (by_l1 != 0) {
        l1 = b > T(0) ? V{} + by_l1 : (b < T(0) ? V{} - by_l1 : b * T(0));
        if (seed) l1 *= load(seed + j);
      }
      if constexpr (sides == 1) {
        const V of_x = (f[0] + a * f[1] + b * f[2]) * by_x + l1;
        to_x.put(j, of_x);
        if (track) {
          const V kept = keep_lanes<T>(of_x, clamped(begin - j), clamped(end - j));
          grads[0] += kept;
          grad_values[0] += kept * (a + b);
        }
      } else if constexpr (sides == 2) {
        V of_u = f[0] + a * f[2] * T(2), of_v = f[1] + b * f[3] * T(2);
        if constexpr (separate) {
          of_u += b * f[4];
          of_v += a * f[4];
        }
        const V of_x = (of_u + of_v) * by_x + l1, of_y = (of_u - of_v) * by_y - l1;
        to_x.put(j, of_x);
        to_y.put(j, of_y);
        if (track) {
          const V kept_x = keep_lanes<T>(of_x, clamped(begin - j), clamped(end - j));
          const V kept_y = keep_lanes<T>(of_y, clamped(begin - j), clamped(end - j));
          grads[0] += kept_x;
          grads[1] += kept_y;
          grad_values[0] += kept_x * (a + b);
          grad_values[1] += kept_y * (a - b);
        }
      }
    }
    to_x.finish();
    if (sides == 2) to_y.finish();
    if (track)
      for (int side = 0; side < sides; ++side) {
        sums_.grad[side] += total(grads[side]);
        sums_.grad_value[side] += total(grad_values[side]) * 0.5;  // u + v = 2 x'
      }
  }

  // A gradient row: straight to the tensor where it is dense, else through a row of scratch.
  class Output {
   public:
    SSIM_INLINE Output(UnitKernel& kernel, const View& view, int64_t row)
        : kernel_(kernel),
          view_(view),
          row_(row),
          begin_(kernel.unit_.col0 - kernel.origin_),
          end_(kernel.unit_.col1 - kernel.origin_) {
      dense_ = view.dtype == native && view.stride_w == 1;
      if (dense_)
        to_ = static_cast<T*>(view.data) + at(view, kernel.unit_.n, kernel.unit_.c, row, kernel.unit_.col0) - begin_;
      else
        to_ = &view == &kernel.level_.grad_x ? kernel.output_ : kernel.input_y_;
    }
    SSIM_INLINE void put(int64_t j, V value) {
      if (j >= begin_ && j + lanes <= end_)
        store_unaligned(to_ + j, value);
      else
        store_lanes(to_ + j, value, clamped(begin_ - j), clamped(end_ - j));
    }
    SSIM_INLINE void finish() {
      if (!dense_) kernel_.write(view_, row_, kernel_.unit_.col0, to_ + begin_, end_ - begin_);
    }

   private:
    UnitKernel& kernel_;
    const View& view_;
    int64_t row_, begin_, end_;
    T* to_;
    bool dense_;
  };

  // ---- mirrored columns ----
  //
  // A mirrored border adds to each result near it a few products with pixels near it. gather: results at the border
  // from source columns; scatter: its transpose, for the adjoint. Sources are the 6 outermost columns, by their order.

  static constexpr int kSources = kRadius + 1;
  static constexpr int kEdgeLanes = (kSources + 2 * lanes - 2) / lanes * lanes + lanes;

  typedef T Table[kSources][kEdgeLanes];
  struct Edges {
    Table gather_left, gather_right, scatter_left, scatter_right;
  };

  SSIM_INLINE void make_edges() {
    for (int64_t d = 1; d <= kRadius; ++d) {
      if (mirror_left_) edge_column(-d, edges_->gather_left, edges_->scatter_left, 0, 0);
      if (mirror_right_)
        edge_column(width_ - 1 + d, edges_->gather_right, edges_->scatter_right, right_source_, right_window_);
    }
  }

  SSIM_INLINE void edge_column(int64_t image, Table& gather, Table& scatter, int64_t source, int64_t window) {
    // A unit narrower than its map is wide enough never to be mirrored twice.
    const int64_t column = mirrored(origin_ + image, level_.w) - origin_;
    for (int k = 0; k < kTaps; ++k) {
      const int64_t result = image + k - kRadius;
      if (result < 0 || result >= width_) continue;
      gather[column - source][result - window] += taps_[k];
      scatter[result - source][column - window] += taps_[k];
    }
  }

  // Adds to each of `results`, at a vector `column` lanes into the table, what the border gives it from filtered row i.
  template <int count>
  SSIM_INLINE void add_edge(V (&results)[count], const Table& table, int i, int64_t source, int64_t column) const {
#pragma GCC unroll 6
    for (int s = 0; s < kSources; ++s) {
      const V coefficients = load(table[s] + column);
      for (int k = 0; k < count; ++k) results[k] += coefficients * filtered_row(i, k)[source + s];
    }
  }

  const UnitCall<T>& call_;
  const Problem& p_;
  const Level& level_;
  const Unit unit_;
  int64_t margin_;               // pixels that "valid" leaves out
  int64_t first_row_, end_row_;  // rows that have partials
  int64_t origin_, width_;       // first column with partials, and their number
  int64_t left_, right_;         // columns of x and y that are read, local
  int64_t padded_;               // width_ in whole vectors
  int64_t keep0_, keep1_;        // columns that are in the map, local
  int64_t own0_, own1_;          // of these, the unit's own
  bool mirror_left_, mirror_right_;
  int64_t left_window_, right_window_, right_source_;
  Edges* edges_;
  T taps_[kTaps];
  Constants<T> constants_;
  int64_t stride_;
  T *u_, *v_, *zero_, *filtered_, *partial_, *seed_, *input_x_, *input_y_, *output_;
  static constexpr int kRowsPerSum = 16;
  UnitSums sums_;
  V ssim_sum_{}, seed_sum_{};
  int rows_summed_ = 0;
  int64_t counted_ = 0;
};

template <class T, Form form>
UnitSums run_form(const UnitCall<T>& call) {
  if (call.level->grad_y.data) return UnitKernel<T, form, 2>(call).run();
  if (call.level->grad_x.data) return UnitKernel<T, form, 1>(call).run();
  return UnitKernel<T, form, 0>(call).run();
}

template <class T>
UnitSums run_unit(const UnitCall<T>& call) {
  switch (call.problem->form()) {
    case Form::kPlain: return run_form<T, Form::kPlain>(call);
    case Form::kPaired: return run_form<T, Form::kPaired>(call);
    default: return run_form<T, Form::kSeparate>(call);
  }
}

// Widens the extremes to the pixels of a row. A NaN changes nothing here: it shows in the loss.
template <class T>
Extremes widen(const T* row, int64_t count, Extremes so_far) {
  T low = static_cast<T>(so_far.low), high = static_cast<T>(so_far.high);
  typename Simd<T>::V lows{}, highs{};
  lows += low;
  highs += high;
  int64_t j = 0;
  for (; j + kLanes<T> <= count; j += kLanes<T>) {
    const auto v = load_unaligned(row + j);
    lows = v < lows ? v : lows;
    highs = v > highs ? v : highs;
  }
  for (int i = 0; i < kLanes<T>; ++i) {
    if (lows[i] < low) low = lows[i];
    if (highs[i] > high) high = highs[i];
  }
  for (; j < count; ++j) {
    if (row[j] < low) low = row[j];
    if (row[j] > high) high = row[j];
  }
  return {static_cast<double>(low), static_cast<double>(high)};
}

}  // namespace SSIM_ISA
}  // namespace ssim

#define SSIM_DEFINE_KERNELS(function, label)                                                                        \
  namespace ssim {                                                                                                  \
  const UnitKernels* function() {                                                                                   \
    static constexpr UnitKernels kernels = {label, run_unit<float>, run_unit<double>, widen<float>, widen<double>}; \
    return &kernels;                                                                                                \
  }                                                                                                                 \
  }
