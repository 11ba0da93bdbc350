// The vertical filter of one column in registers, row by row.
#pragma once

#include "elements.cuh"

namespace ssim {

// Eleven taps in transposed form: each row is multiplied into the sums of the ten results still to come, so that no row
// is ever read twice. Moving the sums up costs nothing: an FMA writes wherever it likes.
template <class T, int count>
class ColumnFilter {
 public:
  SSIM_DEVICE ColumnFilter() {
#pragma unroll
    for (int n = 0; n < count; ++n)
#pragma unroll
      for (int k = 0; k < kTaps - 1; ++k) sums_[n][k] = T(0);
  }

  // Takes a row, and puts into `row` the result kRadius rows above it. taps[k] weighs the row in the result k rows
  // below that one.
  SSIM_DEVICE void push(T (&row)[count], const T* taps) {
#pragma unroll
    for (int n = 0; n < count; ++n) {
      const T value = row[n];
      row[n] = sums_[n][0] + taps[0] * value;
#pragma unroll
      for (int k = 1; k < kTaps - 1; ++k) sums_[n][k - 1] = sums_[n][k] + taps[k] * value;
      sums_[n][kTaps - 2] = taps[kTaps - 1] * value;
    }
  }

  // The same for a row of zeros.
  SSIM_DEVICE void push_zeros(T (&row)[count]) {
#pragma unroll
    for (int n = 0; n < count; ++n) {
      row[n] = sums_[n][0];
#pragma unroll
      for (int k = 1; k < kTaps - 1; ++k) sums_[n][k - 1] = sums_[n][k];
      sums_[n][kTaps - 2] = T(0);
    }
  }

 private:
  T sums_[count][kTaps - 1];
};

}  // namespace ssim
