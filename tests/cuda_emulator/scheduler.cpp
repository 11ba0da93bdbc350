// The scheduler of emulator.h: fibers of a block, barriers, shared memory, blocks on operating-system threads.
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "context_switch.h"
#include "emulator.h"
#include "sanitizers.h"

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;

namespace emulator {

namespace {

// Not a power of two, else all stacks would meet in the same cache sets.
constexpr size_t kStackBytes = (256 << 10) + 64 * 5;
constexpr size_t kMargin = 1024;  // NaN before and after shared memory; who writes there is found out
constexpr size_t kDefaultSharedLimit = 48 << 10;
constexpr int kInvalidValue = 1, kInvalidConfiguration = 9, kLaunchFailure = 719;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  Context context;
  uint3 index{};
  int id = 0;
  State state = State::kReady;
  unsigned mask = 0;            // of the warp barrier it waits at
  bool predicate = false;       // given at a block barrier
  uint64_t given = 0;           // to other lanes
  unsigned barriers[2] = {};    // block and warp barriers passed
  bool fenced = false;          // atomics from here on publish what came before the fence
  const void* atomics[8] = {};  // touched since the last fence, which makes what they saw visible
  int atomic_count = 0;
  void* thread_sanitizer = nullptr;
  void* fake_stack = nullptr;
};

// What outlives a block: ThreadSanitizer must not see memory reused within a launch.
struct Remains {
  std::vector<void*> fibers;
  std::vector<unsigned char*> memory;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<int> order;
  Fiber* running = nullptr;
  Context scheduler;
  void* scheduler_tsan = nullptr;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  unsigned char* keys = nullptr;  // addresses that stand for barriers
  int votes = 0;                  // at the last block barrier
  char* stacks = nullptr;
  bool failed = false;
  void (*run)(void*) = nullptr;
  void* argument = nullptr;
};

thread_local Block* current_block = nullptr;
std::mutex failure_mutex;
std::string failure_text;
std::atomic<uint64_t> launches{0}, blocks_run{0}, threads_run{0};
std::mutex launched_mutex;
std::string launched, launched_before;  // the names of kernels, since they were asked for and when they were

std::unordered_map<const void*, size_t>& shared_limits() {
  static std::unordered_map<const void*, size_t> limits;
  return limits;
}

void note_failure(const char* what, const uint3* thread) {
  char text[512];
  if (thread)
    std::snprintf(text, sizeof text, "%s [block %u,%u,%u thread %u,%u,%u]", what, blockIdx.x, blockIdx.y, blockIdx.z,
                  thread->x, thread->y, thread->z);
  else
    std::snprintf(text, sizeof text, "%s [block %u,%u,%u]", what, blockIdx.x, blockIdx.y, blockIdx.z);
  const std::lock_guard<std::mutex> lock(failure_mutex);
  if (failure_text.empty()) failure_text = text;
}

void to_scheduler(bool for_ever = false) {
  Block* b = current_block;
  Fiber* f = b->running;
  sanitizers::announce(b->scheduler_tsan);
  sanitizers::leave(for_ever ? nullptr : &f->fake_stack, b->scheduler_stack, b->scheduler_stack_bytes);
  switch_context(f->context, b->scheduler);
  sanitizers::arrive(f->fake_stack, nullptr, nullptr);
}

void fiber_main() {
  Block* b = current_block;
  sanitizers::arrive(nullptr, &b->scheduler_stack, &b->scheduler_stack_bytes);
  sanitizers::acquire(b);
  b->run(b->argument);
  b->running->state = State::kDone;
  sanitizers::release(b->argument);
  to_scheduler(true);
  std::abort();
}

void resume(Block& b, Fiber& f) {
  b.running = &f;
  threadIdx = f.index;
  sanitizers::announce(f.thread_sanitizer);
  sanitizers::leave(&b.scheduler_fake_stack, b.stacks + kStackBytes * f.id, kStackBytes);
  switch_context(b.scheduler, f.context);
  sanitizers::arrive(b.scheduler_fake_stack, nullptr, nullptr);
}

void wait(State state, unsigned mask, unsigned char* key, bool orders_memory) {
  Fiber* f = current_block->running;
  f->state = state;
  f->mask = mask;
  // Two keys in turn, so that a fast thread's next barrier orders nothing for the slow ones at this.
  key += f->barriers[state == State::kAtWarpBarrier]++ & 1;
  if (orders_memory) sanitizers::release(key);
  to_scheduler();
  if (orders_memory) sanitizers::acquire(key);
}

// Lets go everybody whose barrier is complete. False where nobody can go on.
bool open_barriers(Block& b) {
  const int n = static_cast<int>(b.fibers.size());
  int at_barrier = 0, done = 0, votes = 0;
  for (const Fiber& f : b.fibers) {
    at_barrier += f.state == State::kAtBlockBarrier;
    done += f.state == State::kDone;
    votes += f.state == State::kAtBlockBarrier && f.predicate;
  }
  if (at_barrier && at_barrier + done == n) {
    if (done) {
      note_failure("__syncthreads() after some threads of the block have returned", nullptr);
      return false;
    }
    b.votes = votes;
    for (Fiber& f : b.fibers) f.state = State::kReady;
    return true;
  }
  bool progress = false;
  for (int first = 0; first < n; first += 32)
    for (int i = first; i < std::min(first + 32, n); ++i) {
      if (b.fibers[i].state != State::kAtWarpBarrier) continue;
      const unsigned mask = b.fibers[i].mask;
      bool complete = true;
      for (int j = 0; j < 32 && first + j < n; ++j) {
        if (!(mask >> j & 1)) continue;
        const Fiber& f = b.fibers[first + j];
        complete = complete && (f.state == State::kDone || (f.state == State::kAtWarpBarrier && f.mask == mask));
      }
      if (!complete) continue;
      progress = true;
      for (int j = 0; j < 32 && first + j < n; ++j)
        if (mask >> j & 1 && b.fibers[first + j].state != State::kDone) b.fibers[first + j].state = State::kReady;
    }
  if (!progress) note_failure("deadlock: divergent __syncthreads(), __syncwarp() or shuffle", nullptr);
  return progress;
}

void give_shared_memory(Block& b, size_t bytes, Remains& remains) {
  const size_t rounded = (bytes + 15) & ~size_t{15};
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(1024, (rounded + 2 * kMargin + 1023) & ~size_t{1023}));
  std::memset(memory, 0xFF, rounded + 2 * kMargin);  // NaN in every floating type
  b.shared = memory + kMargin;
  b.shared_bytes = bytes;
  sanitizers::poison(memory, kMargin);
  sanitizers::poison(b.shared + bytes, rounded - bytes + kMargin);
  remains.memory.push_back(memory);
}

void check_margins(Block& b) {
  unsigned char* begin = b.shared - kMargin;
  unsigned char* end = b.shared + b.shared_bytes;
  const size_t after = ((b.shared_bytes + 15) & ~size_t{15}) - b.shared_bytes + kMargin;
  sanitizers::unpoison(begin, kMargin);
  sanitizers::unpoison(end, after);
  const auto written = [](unsigned char byte) { return byte != 0xFF; };
  if (std::any_of(begin, b.shared, written) || std::any_of(end, end + after, written)) {
    note_failure("a write beside the dynamic shared memory that the launch gave", nullptr);
    b.failed = true;
  }
}

char* stack_pool(int threads) {
  static thread_local char* pool = nullptr;
  static thread_local int size = 0;
  if (size < threads || sanitizers::kThread) {
    if (pool) munmap(pool, kStackBytes * size);
    pool = static_cast<char*>(mmap(nullptr, kStackBytes * threads, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (pool == MAP_FAILED) {
      std::perror("cuda emulator: mmap of stacks");
      std::abort();
    }
    size = threads;
  }
  sanitizers::unpoison(pool, kStackBytes * threads);
  return pool;
}

// False where the kernel made a mistake.
bool run_block(size_t number, size_t shared_bytes, void (*run)(void*), void* argument, Remains& remains) {
  Block b;
  current_block = &b;
  b.run = run, b.argument = argument;
  const Options& o = options();
  const int n = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  give_shared_memory(b, shared_bytes, remains);
  b.keys = static_cast<unsigned char*>(std::malloc(4 + (n & ~31) + 32));
  remains.memory.push_back(b.keys);
  b.stacks = stack_pool(n);
  b.scheduler_tsan = sanitizers::current();
  sanitizers::release(&b);
  b.fibers.resize(n);
  b.order.resize(n);
  std::iota(b.order.begin(), b.order.end(), 0);
  if (o.order == Order::kDescending) std::reverse(b.order.begin(), b.order.end());
  std::mt19937 random(o.seed * 2654435761u + static_cast<unsigned>(number));
  for (int i = 0; i < n; ++i) {
    Fiber& f = b.fibers[i];
    const unsigned id = static_cast<unsigned>(i);
    f.id = i;
    f.index = {id % blockDim.x, id / blockDim.x % blockDim.y, id / (blockDim.x * blockDim.y)};
    f.thread_sanitizer = sanitizers::create();
    prepare(f.context, b.stacks + kStackBytes * i, kStackBytes, fiber_main);
    remains.fibers.push_back(f.thread_sanitizer);
  }
  for (int left = n; left && !b.failed;) {
    if (o.order == Order::kRandom) std::shuffle(b.order.begin(), b.order.end(), random);
    for (int i : b.order) {
      Fiber& f = b.fibers[i];
      if (f.state != State::kReady) continue;
      resume(b, f);
      left -= f.state == State::kDone;
      if (b.failed) break;
    }
    if (left && !b.failed) b.failed = !open_barriers(b);
  }
  check_margins(b);
  if (!sanitizers::kThread) {
    for (unsigned char* memory : remains.memory) std::free(memory);
    remains = {};
  }
  current_block = nullptr;
  blocks_run += 1;
  threads_run += static_cast<uint64_t>(n);
  return !b.failed;
}

}  // namespace

Options& options() {
  static Options o;
  return o;
}
Totals totals() { return {launches, blocks_run, threads_run}; }
const char* failure() { return failure_text.c_str(); }

void fail(const char* what) {
  note_failure(what, &threadIdx);
  current_block->failed = true;
  to_scheduler(true);
  std::abort();
}

void* shared_memory() { return current_block->shared; }
size_t shared_bytes() { return current_block->shared_bytes; }
void block_barrier() { wait(State::kAtBlockBarrier, 0, current_block->keys, true); }
int block_barrier_count(bool predicate) {
  current_block->running->predicate = predicate;
  block_barrier();
  return current_block->votes;
}
int lane() { return current_block->running->id & 31; }
void warp_barrier(unsigned mask, bool orders_memory) {
  if (!(mask >> lane() & 1)) fail("__syncwarp: the calling lane is not in the mask");
  wait(State::kAtWarpBarrier, mask, current_block->keys + 2 + (current_block->running->id & ~31), orders_memory);
}
void give(uint64_t value) { current_block->running->given = value; }
uint64_t take(int lane) {
  const size_t i = static_cast<size_t>((current_block->running->id & ~31) + lane);
  if (i >= current_block->fibers.size() || current_block->fibers[i].state == State::kDone)
    fail("shuffle: takes from a lane that does not exist or has returned");
  return current_block->fibers[i].given;
}

void fence() {
  Fiber* f = current_block->running;
  f->fenced = true;
  for (int i = 0; i < f->atomic_count; ++i) sanitizers::acquire(f->atomics[i]);
  f->atomic_count = 0;
}
// ThreadSanitizer: an atomic and what it publishes are one step, or another block could see the one without the other.
// A lock of our own, since a mutex would itself order everything.
std::atomic_flag atomic_lock;
void before_atomic(const void*) {
  if (!sanitizers::kThread) return;
  while (atomic_lock.test_and_set(std::memory_order_acquire)) {
  }
}
void after_atomic(const void* place) {
  if (!sanitizers::kThread) return;
  Fiber* f = current_block->running;
  if (f->fenced) sanitizers::release(place);
  if (f->atomic_count < 8) f->atomics[f->atomic_count++] = place;
  atomic_lock.clear(std::memory_order_release);
}

int set_shared_limit(const void* kernel, size_t bytes) {
  if (bytes > options().shared_limit) return kInvalidValue;
  // A device would allow it; but where another thread is about to launch the kernel with more, that would fail.
  if (bytes < shared_limits()[kernel]) return kInvalidValue;
  shared_limits()[kernel] = bytes;
  return 0;
}

const char* launched_kernels() {
  const std::lock_guard<std::mutex> lock(launched_mutex);
  launched_before = std::move(launched);
  launched.clear();
  return launched_before.c_str();
}

int launch(dim3 grid, dim3 block, size_t shared_bytes, const void* kernel, void (*run)(void*), void* argument,
           const Parameters& parameters) {
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535 || !block.x ||
      !block.y || !block.z || block.z > 64 || size_t{block.x} * block.y * block.z > 1024)
    return kInvalidConfiguration;
  if (shared_bytes > std::max(kDefaultSharedLimit, shared_limits()[kernel])) return kInvalidValue;
  failure_text.clear();
  launches += 1;
  const Options o = options();
  Dl_info symbol;
  const bool known = dladdr(kernel, &symbol) && symbol.dli_sname;
  if (known) {
    const std::lock_guard<std::mutex> lock(launched_mutex);
    launched.append(symbol.dli_sname).append(1, '\n');
  }
  if (o.executor) {
    const unsigned sizes[][3] = {{grid.x, grid.y, grid.z}, {block.x, block.y, block.z}};
    const bool done = known && !o.executor(symbol.dli_sname, sizes[0], sizes[1], shared_bytes, parameters.places,
                                           parameters.sizes, parameters.count);
    if (!done) failure_text = known ? "the executor failed" : "the kernel has no name";
    return done ? 0 : kLaunchFailure;
  }
  const size_t count = size_t{grid.x} * grid.y * grid.z;
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&] {
    blockDim = block, gridDim = grid;
    Remains remains;
    for (size_t i; !failed && (i = next++) < count;) {
      const size_t j = o.order == Order::kAscending ? i : count - 1 - i;
      blockIdx = {static_cast<unsigned>(j % grid.x), static_cast<unsigned>(j / grid.x % grid.y),
                  static_cast<unsigned>(j / grid.x / grid.y)};
      if (!run_block(j, shared_bytes, run, argument, remains)) failed = true;
    }
    sanitizers::acquire(argument);
    for (void* fiber : remains.fibers) sanitizers::destroy(fiber);
    for (unsigned char* memory : remains.memory) std::free(memory);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < o.os_threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
  return failed ? kLaunchFailure : 0;
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void cuda_emulator_configure(int order, unsigned seed, int os_threads,
                                                                               int multiprocessors,
                                                                               int resident_blocks) {
  emulator::Options& o = emulator::options();
  o.order = static_cast<emulator::Order>(order);
  o.seed = seed;
  o.os_threads = os_threads;
  o.multiprocessors = multiprocessors;
  o.resident_blocks = resident_blocks;
}
extern "C" __attribute__((visibility("default"))) void cuda_emulator_execute_by(emulator::Executor executor) {
  emulator::options().executor = executor;
}
extern "C" __attribute__((visibility("default"))) const char* cuda_emulator_launched_kernels() {
  return emulator::launched_kernels();
}
extern "C" __attribute__((visibility("default"))) unsigned long long cuda_emulator_blocks_run() {
  return emulator::totals().blocks;
}
