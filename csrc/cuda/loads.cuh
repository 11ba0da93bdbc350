// From x and y in global memory to the ring of u and v.
#pragma once

#include "block.cuh"

namespace ssim {

// Where all rows of x, y and the gradient allow it (`vectors`), a thread takes R pixels of one row, four at a time,
// else of one column. They are on their way while the chunk before is computed.
template <class K>
class Loads {
  using T = typename K::T;
  using E = typename K::E;
  static constexpr int R = K::rows;

 public:
  SSIM_DEVICE Loads(const Block<K>& block, Roles is) : b_(block), is_(is) {
    if constexpr (K::lean) {
      Task<E> task = task_at(b_.thread & ~(R - 1));
      if (!b_.level.vectors) move_to_column(task);
      b_.task_of(b_.thread) = task;
    } else {
      b_.task_of(b_.thread) = column_task();
    }
  }

  // R pixels of x and y, on their way.
  struct Vectors {
    Four<E> x[R / 4], y[R / 4];
    template <class P>
    SSIM_DEVICE void put(int j, P of_x, P of_y) {
      x[j / 4].v[j % 4] = of_x, y[j / 4].v[j % 4] = of_y;
    }
    template <class P>
    SSIM_DEVICE Pair<P> get(int j) const {
      return {x[j / 4].v[j % 4], y[j / 4].v[j % 4]};
    }
  };
  struct Bits {
    Word<T> x[R], y[R];
    template <class P>
    SSIM_DEVICE void put(int j, P of_x, P of_y) {
      x[j] = bits_of(of_x), y[j] = bits_of(of_y);
    }
    template <class P>
    SSIM_DEVICE Pair<P> get(int j) const {
      return {element_of<P>(x[j]), element_of<P>(y[j])};
    }
  };
  using Pixels = std::conditional_t<K::lean, Vectors, Bits>;

  // Takes the rows of a chunk from global memory.
  template <bool vectors>
  SSIM_DEVICE void fetch(int chunk, Pixels& pixels) const {
    if constexpr (vectors)
      fetch_row(b_.task_of(fresh_thread()), chunk, pixels);
    else if constexpr (K::lean)
      fetch_column<E>(b_.task_of(fresh_thread()), chunk, pixels);
    else
      as_pixels<T>(b_.level.x.dtype,
                   [&](auto pixel) { fetch_column<decltype(pixel)>(b_.task_of(fresh_thread()), chunk, pixels); });
  }

  // Puts them into the ring.
  template <bool vectors>
  SSIM_DEVICE void keep(int chunk, const Pixels& pixels) {
    if constexpr (vectors) {
      const int thread = fresh_thread(), local = thread & ~(R - 1);
      keep_row(b_.task_of(thread), local, chunk, pixels, is_(kOwnsRow));
      if (is_(kLoadsHalo) && thread < 2 * kMargin) keep_halo(local, chunk);
    } else if constexpr (K::lean) {
      keep_columns<E>(fresh_thread(), chunk, pixels);
    } else {
      as_pixels<T>(b_.level.x.dtype, [&](auto pixel) { keep_columns<decltype(pixel)>(fresh_thread(), chunk, pixels); });
    }
  }

  // Continues a row of the chunk, which the ring holds, beyond the borders of its map.
  SSIM_DEVICE void mirror(int chunk) const {
    if (!is_(kMirrorsRow)) return;
    const int thread = fresh_thread(), begin = b_.begin_of_map(thread), w = b_.level.w;
    const int column = (thread & ~(R - 1)) - begin;  // of the thread's R pixels
    Pair<T>* const line = b_.ring_line(chunk * R + (thread & (R - 1))) + begin;
    const bool left = column == 0, right = column + R >= b_.piece.partial_col1;
    if (w <= kRadius) {
#pragma unroll 1
      for (int i = 1; i <= kRadius; ++i) {
        if (left) line[-i] = line[mirrored(-i, w)];
        if (right) line[w - 1 + i] = line[mirrored(w - 1 + i, w)];
      }
      return;
    }
    if (left) {
#pragma unroll
      for (int i = 1; i <= kRadius; ++i) line[-i] = line[i];
    }
    if (right) {
      Pair<T>* const last = line + w - 1;
#pragma unroll
      for (int i = 1; i <= kRadius; ++i) last[i] = last[-i];
    }
  }

  // Of |v| over this thread's pixels that are the block's own.
  SSIM_DEVICE T& l1_sum() {
    if constexpr (K::lean)
      return b_.task_of(fresh_thread()).l1_sum;
    else
      return l1_sum_;
  }

  SSIM_DEVICE static T magnitude(T value) { return value < T(0) ? -value : value; }

 private:
  SSIM_DEVICE Task<E> task_at(int local) const {
    const Column at = column_at(b_.piece, b_.level, local);
    const bool there = at.map < b_.piece.maps && at.column >= 0 && at.column < b_.level.w;
    const int row = b_.piece.first_row + (b_.thread & (R - 1));
    Task<E> task{static_cast<const E*>(b_.args.x.data),
                 static_cast<const E*>(b_.args.y.data),
                 static_cast<E*>(b_.args.grad_x.data),
                 0,
                 static_cast<uint8_t>(at.map),
                 0,
                 0.0f,
                 0.0f,
                 0.0f,
                 0.0f};
    task.chunks = (b_.piece.load_end - row + R - 1) / R;
    if (there && (K::mirrors || row < b_.piece.load_end)) {
      const int from = K::mirrors ? 0 : row;
      task.x += b_.offset_of(b_.args.x, at.map, from, at.column);
      task.y += b_.offset_of(b_.args.y, at.map, from, at.column);
    }
    if (there) {
      task.grad_x += b_.offset_of(b_.args.grad_x, at.map, row - 2 * kRadius, at.column);
      task.end = static_cast<uint8_t>(smaller(R, b_.level.w - at.column));
    }
    return task;
  }

  SSIM_DEVICE void move_to_column(Task<E>& task) const {
    const Column at = column_at(b_.piece, b_.level, b_.thread);
    task.x = static_cast<const E*>(b_.args.x.data), task.y = static_cast<const E*>(b_.args.y.data);
    if (!is_(kLoadsColumn)) return;
    const int row = b_.piece.first_row, from = K::mirrors ? 0 : row;
    task.x += b_.offset_of(b_.args.x, at.map, from, at.column);
    task.y += b_.offset_of(b_.args.y, at.map, from, at.column);
    task.grad_x =
        static_cast<E*>(b_.args.grad_x.data) + b_.offset_of(b_.args.grad_x, at.map, row - 2 * kRadius, at.column);
  }

  // Of the general kernel.
  SSIM_DEVICE Task<E> column_task() const {
    const Column at = column_at(b_.piece, b_.level, b_.thread);
    const auto begin = [&](const View& view, int margin) -> void* {
      if (!view.data || !is_(kLoadsColumn)) return view.data;
      const int64_t offset = b_.offset_of(view, at.map, 0, at.column - margin);
      return static_cast<char*>(view.data) + offset * bytes_of_element(view.dtype);
    };
    const int margin = b_.launch.margin;
    return {begin(b_.args.x, 0),        begin(b_.args.y, 0),      begin(b_.args.seed, margin),
            begin(b_.args.map, margin), begin(b_.args.grad_x, 0), begin(b_.args.grad_y, 0)};
  }

  // Whoever has no pixels here reads something nevertheless: keep_row knows.
  SSIM_DEVICE void fetch_row(const Task<E>& task, int chunk, Pixels& pixels) const {
    const int from = K::mirrors ? mirrored(b_.first_row(chunk) + (fresh_thread() & (R - 1)), b_.level.h)
                     : task.end > 0 && chunk < task.chunks ? chunk
                                                           : 0;
    const E* x = further(in_global_memory(task.x), from, b_.tables->steps[0]);
    const E* y = further(in_global_memory(task.y), from, b_.tables->steps[1]);
#pragma unroll
    for (int j = 0; j < R; j += 4) {
      const int there_j = j < task.end ? j : 0;
      pixels.x[j / 4] = *reinterpret_cast<const Four<E>*>(x + there_j);
      pixels.y[j / 4] = *reinterpret_cast<const Four<E>*>(y + there_j);
    }
  }

  SSIM_DEVICE void keep_row(const Task<E>& task, int local, int chunk, const Pixels& pixels, bool own) {
    if (chunk >= task.chunks) return;
    const int line = chunk * R + (fresh_thread() & (R - 1));
    Pair<T>* to = b_.ring_line(line) + local;
    if (is_(kRescales))
      put<true>(to, task, pixels);
    else
      put<false>(to, task, pixels);
    const int row = b_.piece.first_row + line;
    if (is_(kSumsL1) && own && row >= b_.piece.row0 && row < b_.piece.row1) {
      T sum = T(0);
#pragma unroll
      for (int j = 0; j < R; ++j)
        if (j < task.end) sum += magnitude(to[j].v);
      l1_sum() += sum;
    }
  }

  template <bool ranges>
  SSIM_DEVICE void put(Pair<T>* to, const Task<E>& task, const Pixels& pixels) const {
#pragma unroll
    for (int j = 0; j < R; j += 4) {
      if (j >= task.end) continue;
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        TwoPairs<T> two;
#pragma unroll
        for (int k = 0; k < 2; ++k)
          two.pair[k] = pair_of<ranges>(static_cast<T>(pixels.x[j / 4].v[i + k]),
                                        static_cast<T>(pixels.y[j / 4].v[i + k]), task.map);
        *reinterpret_cast<TwoPairs<T>*>(to + j + i) = two;
      }
    }
  }

  // As fetch_row: rows that are not there are those before once more.
  template <class P>
  SSIM_DEVICE void fetch_column(const Task<E>& task, int chunk, Pixels& pixels) const {
    if constexpr (!K::lean || K::mirrors) {
      fetch_mirrored_column<P>(task, b_.first_row(chunk), pixels);
    } else {
      const int left = b_.piece.load_end - b_.first_row(chunk);
      const int count = is_(kLoadsColumn) && left > 0 ? left : 0;
      const int from = count > 0 ? chunk : 0;
      const P* x = further(in_global_memory(task.x), from, b_.tables->steps[0]);
      const P* y = further(in_global_memory(task.y), from, b_.tables->steps[1]);
#pragma unroll
      for (int j = 0; j < R; ++j) {
        pixels.template put<P>(j, *x, *y);
        if (j + 1 < count) x += b_.level.x.stride_h, y += b_.level.y.stride_h;
      }
    }
  }

  // Rows beyond the map are mirrored, be it that nobody keeps them.
  template <class P>
  SSIM_DEVICE void fetch_mirrored_column(const Task<E>& task, int first, Pixels& pixels) const {
    const P* x = in_global_memory(static_cast<const P*>(task.x));
    const P* y = in_global_memory(static_cast<const P*>(task.y));
    if (first >= 0 && first + R <= b_.level.h) {
      x = further(x, first, b_.tables->steps[0]), y = further(y, first, b_.tables->steps[1]);
#pragma unroll
      for (int j = 0; j < R; ++j, x += b_.level.x.stride_h, y += b_.level.y.stride_h) pixels.template put<P>(j, *x, *y);
      return;
    }
#pragma unroll
    for (int j = 0; j < R; ++j) {
      const int row = mirrored(first + j, b_.level.h);
      pixels.template put<P>(j, *further(x, row, b_.tables->steps[0]), *further(y, row, b_.tables->steps[1]));
    }
  }

  template <class P>
  SSIM_DEVICE void keep_columns(int thread, int chunk, const Pixels& pixels) {
    if (is_(kLoadsColumn)) keep_column<P>(thread, chunk, pixels);
    if (is_(kLoadsHalo) && thread < 2 * kMargin)
      load_column<P>(thread < kMargin ? thread - kMargin : b_.threads + thread - kMargin, chunk);
  }

  template <class P>
  SSIM_DEVICE void keep_column(int thread, int chunk, const Pixels& pixels) {
    const Column at = column_at(b_.piece, b_.level, thread);
    const int first = b_.first_row(chunk), count = b_.piece.load_end - first;
    const bool sums_l1 = is_(kSumsL1) && is_(kOwnsColumn) && (K::lean || !is_(kWeighs));  // else March::weigh does
#pragma unroll
    for (int j = 0; j < R; ++j) {
      if (j >= count) continue;  // nobody would read them
      const Pair<P> pixel = pixels.template get<P>(j);
      const Pair<T> pair = rescaled(static_cast<T>(pixel.u), static_cast<T>(pixel.v), at.map);
      b_.ring_line(chunk * R + j)[thread] = pair;
      if (sums_l1 && first + j >= b_.piece.row0 && first + j < b_.piece.row1) l1_sum() += magnitude(pair.v);
    }
  }

  // A column that strips need of their neighbours. Four rows at a time wait for memory together; of all R, filters
  // would have to leave their registers.
  template <class P>
  SSIM_DEVICE void load_column(int local, int chunk) const {
    const Column at = column_at(b_.piece, b_.level, local);
    if (at.column < 0 || at.column >= b_.level.w) return;
    const P* x = static_cast<const P*>(b_.args.x.data) + b_.offset_of(b_.args.x, at.map, 0, at.column);
    const P* y = static_cast<const P*>(b_.args.y.data) + b_.offset_of(b_.args.y, at.map, 0, at.column);
    const int first = b_.first_row(chunk);
#pragma unroll 1
    for (int j = 0; j < R; j += 4) {
      P of_x[4], of_y[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = mirrored(first + j + i, b_.level.h);  // those beyond a map are not kept, or are mirrored
        of_x[i] = x[row * b_.args.x.stride_h], of_y[i] = y[row * b_.args.y.stride_h];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (first + j + i < b_.piece.load_end)
          b_.ring_line(chunk * R + j + i)[local] = rescaled(static_cast<T>(of_x[i]), static_cast<T>(of_y[i]), at.map);
    }
  }

  // The same of rows, four pixels at a time.
  SSIM_DEVICE void keep_halo(int local, int chunk) {
    local = local < kMargin ? local - kMargin : b_.threads + local - kMargin;
    const Task<E> task = task_at(local);
    Pixels pixels;
    fetch_row(task, chunk, pixels);
    keep_row(task, local, chunk, pixels, false);
  }

  SSIM_DEVICE Pair<T> rescaled(T x, T y, uint32_t map) const {
    return is_(kRescales) ? pair_of<true>(x, y, map) : pair_of<false>(x, y, map);
  }

  template <bool ranges>
  SSIM_DEVICE Pair<T> pair_of(T x, T y, uint32_t map) const {
    if constexpr (ranges) {
      const Rescale<T> r = b_.tables->rescale[map];
      const T a = (x - r.low[0]) * r.scale[0], b = (y - r.low[1]) * r.scale[1];
      return {a + b, a - b};
    }
    const T a = x * b_.launch.inverse_range;
    return {a + y * b_.launch.inverse_range, a - y * b_.launch.inverse_range};
  }

  const Block<K>& b_;
  const Roles is_;
  T l1_sum_ = T(0);  // (not used if lean)
};

}  // namespace ssim
