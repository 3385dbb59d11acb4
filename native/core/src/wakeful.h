// A processor that is kept from being halted while a thread sleeps on it for something that is due within microseconds.
//
// On a virtual machine the processor that a sleeping thread is woken on has to be woken itself, which costs more than
// what is waited for. Spinning in the thread would take the time that others need, above all the one that is waited
// for. So a thread of its own spins, bound to that processor, under SCHED_IDLE: whoever else wants to run there runs at
// once, the sleeper too when its time has come, and the scheduler takes the processor for an idle one.
//
// Owns that thread; it sleeps but for the time that it was asked for. It never ends, since it would do so under locks
// of the C library and, on a busy machine, be long about it: who needs one no longer leaves it to the next who does.
// Where the kernel refuses SCHED_IDLE, nothing ever spins. Fault model: the processor may be taken away (then it spins
// where it may).
#pragma once

#include <atomic>
#include <cstdint>

namespace holdfast {

class Wakeful {
 public:
  // One that nobody has; any thread.
  static Wakeful* take();
  void giveBack();

  Wakeful(const Wakeful&) = delete;
  Wakeful& operator=(const Wakeful&) = delete;

  // From now on for so long, and no longer: what was asked for before is forgotten. The processor is that of the
  // caller. Costs a system call only when the thread sleeps.
  void stayAwake(uint64_t forNs);

 private:
  Wakeful() = default;
  void run();

  bool started_ = false;
  std::atomic<uint32_t> calls_{0};
  std::atomic<uint64_t> untilNs_{0};
  std::atomic<int> processor_{-1};
  std::atomic<bool> asleep_{false};
};

}  // namespace holdfast
