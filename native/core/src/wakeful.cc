#include "wakeful.h"

#include <pthread.h>
#include <sched.h>

#include <csignal>
#include <ctime>
#include <mutex>
#include <thread>
#include <vector>

#include "spin.h"

namespace holdfast {
namespace {

// Between two looks at the clock: about a microsecond.
constexpr int kTurnsPerLook = 32;

uint64_t nowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

bool becomeIdle() {
  const sched_param none = {};
  return sched_setscheduler(0, SCHED_IDLE, &none) == 0;
}

// Where it may not go it stays: then another processor is awake, which is better than none.
void moveTo(int processor) {
  cpu_set_t only;
  CPU_ZERO(&only);
  if (processor < 0 || processor >= CPU_SETSIZE) return;
  CPU_SET(processor, &only);
  sched_setaffinity(0, sizeof only, &only);
}

struct Spare {
  std::mutex mutex;
  std::vector<Wakeful*> free;
};

// Never destroyed: their threads go on until the process ends.
Spare& theSpare() {
  static auto* spare = new Spare();
  return *spare;
}

}  // namespace

Wakeful* Wakeful::take() {
  Spare& spare = theSpare();
  const std::lock_guard lock(spare.mutex);
  if (spare.free.empty()) return new Wakeful();
  Wakeful* one = spare.free.back();
  spare.free.pop_back();
  return one;
}

void Wakeful::giveBack() {
  stayAwake(0);
  Spare& spare = theSpare();
  const std::lock_guard lock(spare.mutex);
  spare.free.push_back(this);
}

void Wakeful::stayAwake(uint64_t forNs) {
  const bool wanted = forNs > 0;
  untilNs_.store(wanted ? nowNs() + forNs : 0);
  if (!wanted) return;
  processor_.store(sched_getcpu());
  calls_.fetch_add(1);
  if (!started_) {
    std::thread([this] { run(); }).detach();
    started_ = true;
    return;
  }
  // It says that it sleeps, then looks whether there was a call; here it is the other way round: one of the two sees
  // the other.
  if (asleep_.load()) calls_.notify_one();
}

void Wakeful::run() {
  pthread_setname_np(pthread_self(), "hf-wakeful");
  // A signal would wait here until nobody else has anything to do.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  if (!becomeIdle()) return;
  int processor = -1;
  for (;;) {
    const uint32_t seen = calls_.load();
    if (nowNs() >= untilNs_.load()) {
      asleep_.store(true);
      calls_.wait(seen);
      asleep_.store(false);
      continue;
    }
    if (const int wanted = processor_.load(std::memory_order_relaxed); wanted != processor) {
      processor = wanted;
      moveTo(processor);
    }
    for (int i = 0; i < kTurnsPerLook; i++) relax();
  }
}

}  // namespace holdfast
