// The operators of fused_ssim/ops.py on CUDA tensors.
//
// SSIM_NAMESPACE and SSIM_DISPATCH_KEY say where they are registered, so that kernels that an emulator runs on CPU
// tensors can stand beside the real ones.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cuda/ssim_cuda.h"
#include "ops_tensors.h"

#if !defined(SSIM_NAMESPACE)
#define SSIM_NAMESPACE fused_ssim
#define SSIM_DISPATCH_KEY CUDA
#endif

#if !defined(SSIM_CUDA_RUNTIME)
#include <dlfcn.h>
#endif

namespace ssim {
namespace {

using ops::Doubles;
using ops::Tensor;
using ops::Tensors;
using torch::headeronly::ScalarType;

#if defined(SSIM_CUDA_RUNTIME)
struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};
cudaStream_t current_stream(int32_t) { return {}; }
#else
using torch::stable::accelerator::DeviceGuard;

// Looked up while running: a torch without CUDA, which lacks it, must be able to load this file too.
cudaStream_t current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function, "fused_ssim: this torch has no CUDA streams");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return static_cast<cudaStream_t>(stream);
}
#endif

// The current stream of a tensor's device, and memory of torch's allocator that is free again when the call returns:
// the allocator hands it to later work of the same stream only.
class Call {
 public:
  explicit Call(const Tensor& like) : guard_(like.get_device_index()), like_(like) {
    context_.limits = device_limits();
    context_.stream = current_stream(like.get_device_index());
    context_.allocate = [this](int64_t bytes) { return allocate(bytes); };
  }
  Call(const Call&) = delete;
  const CudaContext& context() const { return context_; }

 private:
  // Small pieces come from one tensor, for a tensor costs more than its bytes.
  void* allocate(int64_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > left_) {
      left_ = std::max(bytes, kArenaBytes);
      arenas_.push_back(torch::stable::new_empty(like_, {left_}, ScalarType::Byte));
      next_ = static_cast<char*>(arenas_.back().mutable_data_ptr());
    }
    void* place = next_;
    next_ += bytes, left_ -= bytes;
    return place;
  }

  static constexpr int64_t kAlignment = 256, kArenaBytes = 256 << 10;
  DeviceGuard guard_;
  const Tensor like_;
  CudaContext context_;
  Tensors arenas_;
  char* next_ = nullptr;
  int64_t left_ = 0;
};

struct Cuda {
  static void run(const Problem& problem, const std::vector<Level>& levels, bool per_sample, const Tensor& x,
                  Tensor* values) {
    const Call call(x);
    run_cuda(problem, levels, per_sample, values ? values->mutable_data_ptr() : nullptr, call.context());
  }
};

// grads[i] *= factor[i] / divisor[i], where factor is (levels,) or (levels, N).
void scale_(Tensors grads, Tensor factor, Doubles divisor) {
  ops::check_scale(grads, factor, divisor);
  if (grads.empty()) return;
  const bool per_sample = factor.dim() == 2;
  std::vector<ScaleCall> calls;
  for (size_t i = 0; i < grads.size(); ++i) {
    const Tensor& g = grads[i];
    calls.push_back({ops::view_of(g), g.size(0), g.size(1), g.size(2), g.size(3), divisor[i]});
  }
  const Call call(grads[0]);
  scale_cuda(calls, factor.const_data_ptr(), ops::dtype_of(factor), factor.stride(0), per_sample ? factor.stride(1) : 0,
             call.context());
}

}  // namespace
}  // namespace ssim

#define SSIM_REGISTER(space, key, m) STABLE_TORCH_LIBRARY_IMPL(space, key, m)
SSIM_REGISTER(SSIM_NAMESPACE, SSIM_DISPATCH_KEY, m) {
  m.impl("ssim_sums", TORCH_BOX(&ssim::ops::ssim_sums<ssim::Cuda>));
  m.impl("ssim_map", TORCH_BOX(&ssim::ops::ssim_map<ssim::Cuda>));
  m.impl("ssim_map_backward", TORCH_BOX(&ssim::ops::ssim_map_backward<ssim::Cuda>));
  m.impl("scale_", TORCH_BOX(&ssim::scale_));
}
