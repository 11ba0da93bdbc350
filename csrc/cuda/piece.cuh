// Where a block stands: its level, its rectangle of pixels, and what each thread does there.
#pragma once

#include "border.cuh"

namespace ssim {

SSIM_DEVICE int larger(int a, int b) { return a > b ? a : b; }
SSIM_DEVICE int smaller(int a, int b) { return a < b ? a : b; }

// The rectangle of a block, in pixels of its maps. Rows and columns of partials reach kRadius further than its own
// where a gradient is wanted, and those of x and y as much again.
struct Piece {
  int level;
  uint32_t first_plane, maps;
  int row0, row1, col0, col1;  // own
  int origin;                  // of the block's first column
  int partial_row0, partial_row1, partial_col0, partial_col1;
  int first_row, load_end, end_row;  // the block marches from first_row to end_row, and loads up to load_end
  int inside_row0, inside_row1;      // chunks that begin here complete SSIM of own rows only, away from a mirror
  uint32_t unit_of_first_plane, units_per_plane;
};

template <class T>
SSIM_DEVICE Piece piece_of(const LaunchArgs<T>& launch, int reach, int chunk_rows) {
  Piece p;
  p.level = 0;
  uint32_t block = blockIdx.x;
  while (block >= launch.levels[p.level].end_block) ++p.level;
  if (p.level > 0) block -= launch.levels[p.level - 1].end_block;
  const LevelArgs<T>& l = launch.levels[p.level];
  p.units_per_plane = l.strips * l.bands;
  const uint32_t group = block / p.units_per_plane, part = block % p.units_per_plane;
  const int band = static_cast<int>(part / l.strips), strip = static_cast<int>(part % l.strips);
  p.first_plane = group * l.maps;
  p.maps = l.planes - p.first_plane < l.maps ? l.planes - p.first_plane : l.maps;
  p.unit_of_first_plane = p.first_plane * p.units_per_plane + part;
  p.row0 = band * l.band_rows, p.row1 = smaller(l.h, p.row0 + l.band_rows);
  p.col0 = strip * l.strip_columns, p.col1 = smaller(l.w, p.col0 + l.strip_columns);
  p.origin = p.col0 > 0 ? p.col0 - kMargin : 0;
  p.partial_row0 = larger(launch.margin, p.row0 - reach), p.partial_row1 = smaller(l.h - launch.margin, p.row1 + reach);
  p.partial_col0 = larger(launch.margin, p.col0 - reach), p.partial_col1 = smaller(l.w - launch.margin, p.col1 + reach);
  const bool mirror = launch.padding == Padding::kReflect;
  p.first_row = mirror ? p.partial_row0 - kRadius : larger(0, p.partial_row0 - kRadius);
  // A row more that costs nothing makes gradients begin with a chunk.
  if (mirror && p.partial_row0 == 0 && (p.row1 + reach + kRadius - p.first_row) % chunk_rows) --p.first_row;
  p.load_end = smaller(mirror ? l.h + kRadius : l.h, p.row1 + reach + kRadius);
  p.end_row = p.row1 + reach + kRadius;
  const int fold = mirror ? kRadius : 0;  // rows at either end whose partials are folded
  p.inside_row0 = larger(larger(p.partial_row0, p.row0), fold) + kRadius;
  p.inside_row1 = smaller(smaller(p.partial_row1, p.row1), l.h - fold) + kRadius - chunk_rows + 1;
  return p;
}

// A column of a block: which of its maps, and which column there. A block of several maps has them side by side.
struct Column {
  uint32_t map;
  int column;  // of the map; may lie outside
};

template <class T>
SSIM_DEVICE Column column_at(const Piece& piece, const LevelArgs<T>& level, int local) {
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
