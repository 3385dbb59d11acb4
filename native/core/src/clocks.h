// The two clocks of a node: CLOCK_BOOTTIME for leases and deadlines (it runs through suspends, F2), wall time for
// inodes.
#pragma once

#include <cstdint>
#include <ctime>

namespace holdfast {

// Milliseconds with a fraction; read through the vdso, no system call.
inline double bootTimeMs() {
  timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
}

// Nanoseconds since 1970.
inline int64_t wallClockNs() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

}  // namespace holdfast
