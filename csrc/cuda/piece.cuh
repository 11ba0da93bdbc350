// Where a block stands: its level, its rectangle of pixels, and what each thread does there.
#pragma once

#include "border.cuh"

namespace ssim {

SSIM_DEVICE int larger(int a, int b) { return a > b ? a : b; }
SSIM_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// The rectangle of a block, in pixels of its maps. Rows and columns of partials reach kRadius further than its own where
// a gradient is wanted, and those of x and y as much again.
template <class T>
struct Piece {
  int level;
  uint32_t first_plane, maps;
  int row0, row1, col0, col1;          // own
  int origin;                          // of the block's first column
  int partial_row0, partial_row1, partial_col0, partial_col1;
  int first_row, load_end, end_row;    // the block marches from first_row to end_row, and loads up to load_end
  uint32_t unit_of_first_plane, units_per_plane;

  SSIM_DEVICE Piece(const LaunchArgs<T>& launch, int reach) {
    level = 0;
    uint32_t block = blockIdx.x;
    while (block >= launch.levels[level].end_block) ++level;
    if (level > 0) block -= launch.levels[level - 1].end_block;
    const LevelArgs<T>& l = launch.levels[level];
    units_per_plane = l.strips * l.bands;
    const uint32_t group = block / units_per_plane, part = block % units_per_plane;
    const int band = static_cast<int>(part / l.strips), strip = static_cast<int>(part % l.strips);
    first_plane = group * l.maps;
    maps = l.planes - first_plane < l.maps ? l.planes - first_plane : l.maps;
    unit_of_first_plane = first_plane * units_per_plane + part;
    row0 = band * l.band_rows, row1 = smaller(l.h, row0 + l.band_rows);
    col0 = strip * l.strip_columns, col1 = smaller(l.w, col0 + l.strip_columns);
    origin = col0 > 0 ? col0 - kMargin : 0;
    partial_row0 = larger(launch.margin, row0 - reach), partial_row1 = smaller(l.h - launch.margin, row1 + reach);
    partial_col0 = larger(launch.margin, col0 - reach), partial_col1 = smaller(l.w - launch.margin, col1 + reach);
    const bool mirror = launch.padding == Padding::kReflect;
    first_row = mirror ? partial_row0 - kRadius : larger(0, partial_row0 - kRadius);
    load_end = smaller(mirror ? l.h + kRadius : l.h, row1 + reach + kRadius);
    end_row = row1 + reach + kRadius;
  }
};

// A column of a block: which of its maps, and which column there. A block of several maps has them side by side.
struct Column {
  uint32_t map;
  int column;  // of the map; may lie outside
};

template <class T>
SSIM_DEVICE Column column_at(const Piece<T>& piece, const LevelArgs<T>& level, int local) {
  if (level.maps == 1) return {0, piece.origin + local};
  const int map = local < 0 ? 0 : local / level.slot;
  return {static_cast<uint32_t>(map), local - map * level.slot};
}

template <class T>
SSIM_DEVICE int64_t plane_offset(const View& view, const LevelArgs<T>& level, uint32_t plane) {
  return static_cast<int64_t>(plane / level.channels) * view.stride_n +
         static_cast<int64_t>(plane % level.channels) * view.stride_c;
}

}  // namespace ssim
