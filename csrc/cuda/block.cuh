// What the threads of a block share: its piece of a level, and shared memory.
#pragma once

#include "piece.cuh"
#include "reduce.cuh"
#include "thread.cuh"

namespace ssim {

// Which calls a kernel serves. The other two are lean: E is the type of the pixels, and there is no weight, no map and
// no other form than kPlain. kSame serves "valid", too: there are no partials in the margin. Of kAll all of that is
// decided while it runs, and padding too.
enum class Serves { kAll, kSame, kReflect };

// One instantiation of the kernel. `tracks`: it sums what minimum and maximum receive of the gradient.
template <class T_, class E_, bool separate_, int sides_, int rows_, Serves serves_, bool tracks_, int max_threads_,
          int registers_>
struct MarchTraits {
  using T = T_;
  using E = E_;
  static constexpr bool separate = separate_, tracks = tracks_;
  static constexpr bool lean = serves_ != Serves::kAll, mirrors = serves_ == Serves::kReflect;
  static constexpr int sides = sides_;  // 0 no gradient, 1 of x, 2 of x and y
  static constexpr int rows = rows_;    // of a chunk; a thread takes as many pixels of one row for horizontal filters
  static constexpr int max_threads = max_threads_, registers = registers_;  // of a block, of a thread
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

// What stands at the beginning of a block's shared memory, where addresses are constants; KernelShape::table_bytes
// reserves it. Piece and level lie here too: what is asked for once in a chunk would only fill the registers that the
// column filters need. (Of pointers in the launch's arguments the compiler knows that they are to global memory; of
// those from here it must be told.)
template <class T>
struct LeanTables {
  // In bytes: of x and y from chunk to chunk, where a kernel may mirror from row to row; of the gradient from chunk to
  // chunk.
  alignas(16) int64_t steps[3];
  Piece piece;
  LevelArgs<T> level;
  Rescale<T> rescale[kMaxThreads / kSegment];
  int lows[kMaxThreads / kSegment], highs[kMaxThreads / kSegment];    // pixels of x that attain minimum and maximum
  T of_low[kMaxThreads / kSegment], of_high[kMaxThreads / kSegment];  // what each of them receives of the gradient
};

template <class T>
struct Tables : LeanTables<T> {
  FoldedTaps<T> folded;
};

template <class K>
struct Block {
  using T = typename K::T;
  using Values = Cell<T, K::values>;
  static constexpr int R = K::rows;
  static constexpr int kRing = 2 * R + 10;  // rows from the gradient's to the loads'
  static constexpr bool kMayMirror = !K::lean || K::mirrors;
  using TablesOf = std::conditional_t<kMayMirror, Tables<T>, LeanTables<T>>;
  static constexpr int kTables = !K::lean ? kTableBytes : K::mirrors ? kMirrorTableBytes : kLeanTableBytes;
  static constexpr int kCellRows = R + 1;  // one more than used: 8 neighbouring threads then hit different banks
  static_assert(sizeof(TablesOf) <= kTables, "KernelShape::shared_bytes reserves too little");
  static_assert(sizeof(Task<typename K::E>) == kTaskBytes, "and so for tasks");

  const LaunchArgs<T>& launch;
  const int threads, thread, ring_pitch;
  TablesOf* const tables;
  T* const seeds;  // of a chunk, row by row: of the general kernel
  Pair<T>* const ring;
  Values* const cells;
  const Piece& piece;
  const LevelArgs<T>& level;  // in shared memory
  const LevelArgs<T>& args;   // the same among the launch's arguments
  const bool mirror;

  SSIM_DEVICE Block(const LaunchArgs<T>& launch_args, unsigned char* memory)
      : launch(launch_args),
        threads(static_cast<int>(blockDim.x)),
        thread(static_cast<int>(threadIdx.x)),
        ring_pitch(threads + 2 * kMargin + 2),
        tables(reinterpret_cast<TablesOf*>(memory)),
        seeds(reinterpret_cast<T*>(memory + kTables + threads * kTaskBytes)),
        ring(reinterpret_cast<Pair<T>*>(seeds + (K::lean ? 0 : R * threads))),
        cells(reinterpret_cast<Values*>(ring + kRing * ring_pitch)),
        piece(tables->piece),
        level(tables->level),
        args(launch.levels[prepare_piece()]),
        mirror(K::lean ? K::mirrors : launch.padding == Padding::kReflect) {}

  SSIM_DEVICE int first_row(int chunk) const { return piece.first_row + chunk * R; }

  // u, v of the block's column 0, of the line-th row from its first on.
  SSIM_DEVICE Pair<T>* ring_line(int line) const {
    return ring + static_cast<unsigned>(line) % kRing * ring_pitch + kMargin;
  }

  SSIM_DEVICE Values* cells_of(int local) const { return cells + (local + kMargin) * kCellRows; }

  SSIM_DEVICE Task<typename K::E>& task_of(int of_thread) const {
    return reinterpret_cast<Task<typename K::E>*>(reinterpret_cast<unsigned char*>(tables) + kTables)[of_thread];
  }

  // Of those of the block, the one of a thread's task.
  SSIM_DEVICE int map_of(int of_thread) const {
    if constexpr (K::lean) return task_of(of_thread).map;
    return static_cast<int>(column_at(piece, level, of_thread & ~(R - 1)).map);
  }

  // Where column 0 of the map of a thread's task stands, counted from the block's.
  SSIM_DEVICE int begin_of_map(int of_thread) const { return map_of(of_thread) * level.slot - piece.origin; }

  SSIM_DEVICE int64_t offset_of(const View& view, uint32_t map, int row, int column) const {
    return plane_offset(view, level, piece.first_plane + map) + static_cast<int64_t>(row) * view.stride_h +
           static_cast<int64_t>(column) * view.stride_w;
  }

  SSIM_DEVICE static T load(const View& view, int64_t offset) {
    if constexpr (K::lean)
      return static_cast<T>(static_cast<const typename K::E*>(view.data)[offset]);
    else
      return load_any<T>(view, offset);
  }

  // Weights of R neighbouring pixels of a row, all asked for before the first is waited for.
  SSIM_DEVICE void load_seeds(const Column& at, int row, T (&seeds_of_row)[R]) const {
    as_type(args.seed.dtype, [&](auto seed) {
      using P = decltype(seed);
      const P* const line = static_cast<const P*>(args.seed.data) + offset_of(args.seed, at.map, row, 0);
      P taken[R];
#pragma unroll
      for (int o = 0; o < R; ++o) taken[o] = line[smaller(at.column + o, level.w - 1) * level.seed.stride_w];
#pragma unroll
      for (int o = 0; o < R; ++o) seeds_of_row[o] = static_cast<T>(taken[o]);
    });
  }

  // Fills shared memory. Margins and gaps between maps stay zero from here on: nobody writes there.
  SSIM_DEVICE void prepare() const {
    if (args.found) {
      find_ranges();
      __syncthreads();
    } else {
      for (int map = thread; map < static_cast<int>(piece.maps); map += threads) {
        RangePair<T> range{};
        if (args.ranges) range = args.ranges[(piece.first_plane + map) / level.planes_per_range];
        tables->rescale[map] = rescale_by(range);
      }
    }
    Four<T>* const begin = reinterpret_cast<Four<T>*>(ring);
    Four<T>* const end = reinterpret_cast<Four<T>*>(cells + (threads + 2 * kMargin) * kCellRows);
#pragma unroll 4
    for (Four<T>* at = begin + thread; at < end; at += threads) *at = {};
    if constexpr (kMayMirror) tables->folded.fill(launch.taps, level.h, mirror);
    __syncthreads();
  }

 private:
  // Finds the block's piece; returns its level.
  SSIM_DEVICE int prepare_piece() const {
    if (thread == 0) {
      const Piece found = piece_of(launch, K::sides ? kRadius : 0, R);
      tables->piece = found;
      const LevelArgs<T>& found_level = launch.levels[found.level];
      tables->level = found_level;
      if constexpr (K::lean) {
        constexpr int64_t kRows = K::mirrors ? 1 : R;
        tables->steps[0] = found_level.x.stride_h * (kRows * int64_t{sizeof(typename K::E)});
        tables->steps[1] = found_level.y.stride_h * (kRows * int64_t{sizeof(typename K::E)});
        tables->steps[2] = found_level.grad_x.stride_h * int64_t{R * sizeof(typename K::E)};
      } else {
        as_pixels<T>(found_level.x.dtype, [&](auto pixel) {
          tables->steps[0] = found_level.x.stride_h * int64_t{sizeof(pixel)};
          tables->steps[1] = found_level.y.stride_h * int64_t{sizeof(pixel)};
        });
      }
    }
    __syncthreads();
    return piece.level;
  }

  // The extremes of each map of a block that has them whole: a thread goes down its column.
  SSIM_DEVICE void find_ranges() const {
    const Column at = column_at(piece, level, thread);
    const bool there = at.map < piece.maps && at.column < level.w;
    CountedRange<T> found{empty_range<T>(), 0, 0};
    if (there) {
      const int64_t x = offset_of(args.x, at.map, 0, at.column), y = offset_of(args.y, at.map, 0, at.column);
#pragma unroll 4
      for (int row = 0; row < level.h; ++row) {
        const T value = load(args.x, x + row * args.x.stride_h);
        if (value < found.range.low[0]) found.lows = 0;
        if (value > found.range.high[0]) found.highs = 0;
        widen(found.range, 0, value);
        found.lows += value == found.range.low[0], found.highs += value == found.range.high[0];
        widen(found.range, 1, load(args.y, y + row * args.y.stride_h));
      }
    }
    const int relative = thread - static_cast<int>(at.map) * level.slot;
    found = join_span(reinterpret_cast<CountedRange<T>*>(ring), found, relative, level.maps == 1 ? threads : level.slot,
                      Widen<T>());
    if (relative != 0 || at.map >= piece.maps) return;
    args.found[piece.first_plane + at.map] = found.range;
    tables->rescale[at.map] = rescale_by(found.range);
    tables->lows[at.map] = found.lows, tables->highs[at.map] = found.highs;
  }

  SSIM_DEVICE Rescale<T> rescale_by(const RangePair<T>& range) const {
    Rescale<T> r;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const T extent = range.high[side] - range.low[side];
      r.low[side] = range.low[side];
      r.scale[side] = launch.inverse_range;
      if (args.ranges) r.scale[side] = extent < Limits<T>::smallest_normal ? T(0) : launch.inverse_range / extent;
    }
    return r;
  }
};

}  // namespace ssim
