#include "ledger.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace holdfast {
namespace {

size_t Pages(size_t bytes) { return (bytes + kLedgerPageBytes - 1) / kLedgerPageBytes * kLedgerPageBytes; }

struct Places {
  size_t nodes;
  size_t handles;
  size_t end;
};
Places PlacesOf(uint32_t slots, uint32_t nodes, uint32_t handles) {
  Places places{};
  places.nodes = kLedgerPageBytes + Pages(sizeof(InFlightRecord) * size_t{slots});
  places.handles = places.nodes + Pages(sizeof(NodeRecord) * size_t{nodes});
  places.end = places.handles + Pages(kHandleRecordBytes * size_t{handles});
  return places;
}

[[noreturn]] void Fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

uint8_t* MapShared(int fd, size_t length) {
  void* bytes = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (bytes == MAP_FAILED) Fail("mmap of the mount's ledger");
  return static_cast<uint8_t*>(bytes);
}

}  // namespace

Ledger::Ledger(Descriptor fd, uint8_t* bytes, size_t length) : fd_(std::move(fd)), bytes_(bytes), length_(length) {
  const Places places = PlacesOf(header().slot_capacity, header().node_capacity, header().handle_capacity);
  in_flight_ = reinterpret_cast<InFlightRecord*>(bytes_ + kLedgerPageBytes);
  nodes_ = reinterpret_cast<NodeRecord*>(bytes_ + places.nodes);
}

Ledger::~Ledger() { munmap(bytes_, length_); }

std::shared_ptr<Ledger> Ledger::Create(uint32_t slots, uint32_t nodes, uint32_t handles) {
  Descriptor fd(memfd_create("holdfast-mount", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) Fail("memfd_create");
  const Places places = PlacesOf(slots, nodes, handles);
  if (ftruncate(fd.get(), static_cast<off_t>(places.end)) != 0) Fail("ftruncate of the mount's ledger");
  // Nobody who maps it can be made to fault by a shorter one.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) Fail("seals of the mount's ledger");
  uint8_t* bytes = MapShared(fd.get(), places.end);
  auto* header = reinterpret_cast<LedgerHeader*>(bytes);
  header->version = kLedgerVersion;
  header->slot_capacity = slots;
  header->node_capacity = nodes;
  header->handle_capacity = handles;
  header->handles_offset = places.handles;
  header->magic = kLedgerMagic;
  return std::shared_ptr<Ledger>(new Ledger(std::move(fd), bytes, places.end));
}

std::shared_ptr<Ledger> Ledger::Map(int given) {
  Descriptor fd(fcntl(given, F_DUPFD_CLOEXEC, 3));
  if (!fd) Fail("dup of the mount's ledger");
  struct stat status;
  if (fstat(fd.get(), &status) != 0) Fail("fstat of the mount's ledger");
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || status.st_size < static_cast<off_t>(kLedgerPageBytes)) {
    throw std::runtime_error("the descriptor is not a mount's ledger");
  }
  const auto length = static_cast<size_t>(status.st_size);
  uint8_t* bytes = MapShared(fd.get(), length);
  const auto* header = reinterpret_cast<const LedgerHeader*>(bytes);
  const char* wrong = nullptr;
  if (header->magic != kLedgerMagic) {
    wrong = "the descriptor is not a mount's ledger";
  } else if (header->version != kLedgerVersion) {
    wrong = "the mount's ledger is of another version";
  } else if (header->node_capacity > kNodeCapacityMax || header->handle_capacity > kHandleCapacityMax ||
             PlacesOf(header->slot_capacity, header->node_capacity, header->handle_capacity).end != length) {
    wrong = "the mount's ledger has another size than it says";
  }
  if (wrong != nullptr) {
    munmap(bytes, length);
    throw std::runtime_error(wrong);
  }
  return std::shared_ptr<Ledger>(new Ledger(std::move(fd), bytes, length));
}

}  // namespace holdfast
