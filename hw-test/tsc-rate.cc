// Prints the rate of this machine's time stamp counter in kHz. See tsc-rate.ts for why a guest must be told.
#include <x86intrin.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>

namespace {

struct Reading {
  std::chrono::steady_clock::time_point time;
  std::uint64_t ticks;
};

// Both clocks at one moment: of several tries the one that was interrupted least.
Reading read() {
  Reading best{};
  std::uint64_t least = UINT64_MAX;
  for (int attempt = 0; attempt < 1000; attempt++) {
    const std::uint64_t before = __rdtsc();
    const auto time = std::chrono::steady_clock::now();
    const std::uint64_t after = __rdtsc();
    if (after - before >= least) continue;
    least = after - before;
    best = {time, before + (after - before) / 2};
  }
  return best;
}

}  // namespace

int main() {
  const Reading first = read();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const Reading last = read();
  const std::chrono::duration<double, std::milli> elapsed = last.time - first.time;
  std::printf("%.0f\n", static_cast<double>(last.ticks - first.ticks) / elapsed.count());
}
