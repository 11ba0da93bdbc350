// Remembers which memory the operators got from torch, so that whoever runs a kernel in the emulator's place knows
// every buffer's bounds. Linked with --wrap for the function of torch through which tensors are made.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstring>
#include <vector>

namespace {

struct Buffer {
  void* address;
  int64_t bytes;
};
std::vector<Buffer> buffers;

void note(AtenTensorHandle tensor) {
  Buffer buffer{};
  aoti_torch_get_data_ptr(tensor, &buffer.address);
  aoti_torch_get_storage_size(tensor, &buffer.bytes);
  buffers.push_back(buffer);
}

}  // namespace

extern "C" {

AOTITorchError __real_torch_call_dispatcher(const char*, const char*, StableIValue*, uint64_t);
AOTITorchError __wrap_torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack,
                                            uint64_t version) {
  const AOTITorchError error = __real_torch_call_dispatcher(name, overload, stack, version);
  if (!error && (!std::strcmp(name, "aten::empty_like") || !std::strcmp(name, "aten::new_empty"))) {
    AtenTensorHandle tensor;
    std::memcpy(&tensor, stack, sizeof tensor);
    note(tensor);
  }
  return error;
}

// How many buffers there are since the last call without `addresses`; fills both arrays where `bytes` is there.
__attribute__((visibility("default"))) int cuda_emulator_allocations(void** addresses, int64_t* bytes) {
  if (!addresses) buffers.clear();
  for (size_t i = 0; bytes && i < buffers.size(); ++i) addresses[i] = buffers[i].address, bytes[i] = buffers[i].bytes;
  return static_cast<int>(buffers.size());
}

}  // extern "C"
