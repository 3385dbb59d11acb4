// Single NVMe commands for JavaScript: any admin or I/O command, sent in a thread, and the commands that the engine
// would send, for inspection.
//
// What a thread works on is its own: a duplicate of the descriptor, a copy of the command and of the data. So neither
// closing the file nor the collector nor the end of a worker can pull anything away under a command.
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <uv.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "addon.h"
#include "nvme_passthrough.h"

namespace napi_nvme {

Napi::Error SystemError(Napi::Env env, int error, const char* call, const std::string& path) {
  Napi::Error made = Napi::Error::New(env, std::string(uv_err_name(-error)) + ": " + uv_strerror(-error) + ", " + call +
                                               (path.empty() ? "" : " '" + path + "'"));
  made.Set("code", Napi::String::New(env, uv_err_name(-error)));
  made.Set("errno", Napi::Number::New(env, -error));
  made.Set("syscall", Napi::String::New(env, call));
  if (!path.empty()) made.Set("path", Napi::String::New(env, path));
  return made;
}

namespace {

constexpr double kUint32Max = 4294967295.0;
constexpr double kDataBytesMax = 16 << 20;
constexpr double kCommandsMax = 4096;

double WholeNumber(Napi::Env env, const Napi::Value& value, const char* name, double min, double max) {
  if (!value.IsNumber()) throw Napi::TypeError::New(env, std::string(name) + " is a number");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(number >= min && number <= max) || std::trunc(number) != number)
    throw Napi::RangeError::New(env, std::string(name) + " is out of range");
  return number;
}

// What a command moves, in either direction; empty for none.
std::vector<uint8_t> Payload(Napi::Env env, const Napi::Value& length, const Napi::Value& bytes, const char* name) {
  std::vector<uint8_t> payload(static_cast<size_t>(WholeNumber(env, length, name, 0, kDataBytesMax)));
  if (bytes.IsNull() || bytes.IsUndefined()) return payload;
  if (!bytes.IsTypedArray() || bytes.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    throw Napi::TypeError::New(env, std::string(name) + " are a Uint8Array");
  const auto array = bytes.As<Napi::Uint8Array>();
  if (array.ByteLength() > payload.size()) throw Napi::RangeError::New(env, std::string(name) + " are too many");
  if (array.ByteLength() > 0) std::memcpy(payload.data(), array.Data(), array.ByteLength());
  return payload;
}

class Sending : public Napi::AsyncWorker {
 public:
  Sending(Napi::Env env, int fd, CommandSet set, const nvme_uring_cmd& command, std::vector<uint8_t> data,
          std::vector<uint8_t> metadata)
      : Napi::AsyncWorker(env),
        deferred_(Napi::Promise::Deferred::New(env)),
        fd_(fd),
        set_(set),
        data_(std::move(data)),
        metadata_(std::move(metadata)) {
    static_assert(sizeof command + sizeof(uint64_t) == sizeof command_);
    std::memcpy(static_cast<void*>(&command_), &command, sizeof command);
    command_.addr = reinterpret_cast<uintptr_t>(data_.empty() ? nullptr : data_.data());
    command_.data_len = static_cast<uint32_t>(data_.size());
    command_.metadata = reinterpret_cast<uintptr_t>(metadata_.empty() ? nullptr : metadata_.data());
    command_.metadata_len = static_cast<uint32_t>(metadata_.size());
  }
  ~Sending() override { close(fd_); }
  Napi::Promise Promise() const { return deferred_.Promise(); }

  void Execute() override { error_ = SendCommand(fd_, set_, &command_, &status_); }

  void OnOK() override {
    const Napi::Env env = Env();
    const Napi::HandleScope scope(env);
    Napi::Object made = Napi::Object::New(env);
    made.Set("errno", error_);
    made.Set("status", status_);
    made.Set("result", static_cast<double>(command_.result & 0xffffffffu));
    made.Set("resultHigh", static_cast<double>(command_.result >> 32));
    made.Set("data", Copy(env, data_));
    made.Set("metadata", Copy(env, metadata_));
    deferred_.Resolve(made);
  }

 private:
  static Napi::Value Copy(Napi::Env env, const std::vector<uint8_t>& bytes) {
    if (bytes.empty()) return env.Null();
    Napi::Uint8Array made = Napi::Uint8Array::New(env, bytes.size());
    std::memcpy(made.Data(), bytes.data(), bytes.size());
    return made;
  }

  const Napi::Promise::Deferred deferred_;
  const int fd_;
  const CommandSet set_;
  nvme_passthru_cmd64 command_ = {};
  std::vector<uint8_t> data_;
  std::vector<uint8_t> metadata_;
  int error_ = 0;
  uint32_t status_ = 0;
};

nvme_uring_cmd ParseCommand(Napi::Env env, const Napi::Value& value) {
  nvme_uring_cmd command;
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array ||
      value.As<Napi::TypedArray>().ByteLength() != sizeof command)
    throw Napi::TypeError::New(env, "a command is a Uint8Array of 72 bytes");
  std::memcpy(&command, value.As<Napi::Uint8Array>().Data(), sizeof command);
  return command;
}

// sendCommand(fd, io, command, dataBytes, data, metadataBytes, metadata)
//   -> Promise<{ errno, status, result, resultHigh, data, metadata }>
Napi::Value SendCommandFrom(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = static_cast<int>(WholeNumber(env, info[0], "the descriptor", 0, 0x7fffffff));
  const nvme_uring_cmd command = ParseCommand(env, info[2]);
  std::vector<uint8_t> data = Payload(env, info[3], info[4], "data bytes");
  std::vector<uint8_t> metadata = Payload(env, info[5], info[6], "metadata bytes");
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) throw SystemError(env, errno, "dup", "");
  auto* sending = new Sending(env, own, info[1].ToBoolean() ? CommandSet::kIo : CommandSet::kAdmin, command,
                              std::move(data), std::move(metadata));
  const Napi::Promise promise = sending->Promise();
  sending->Queue();
  return promise;
}

// namespaceId(fd) -> 0 for what is no namespace
Napi::Value NamespaceIdFrom(const Napi::CallbackInfo& info) {
  const int fd = static_cast<int>(WholeNumber(info.Env(), info[0], "the descriptor", 0, 0x7fffffff));
  return Napi::Number::New(info.Env(), NamespaceId(fd));
}

// encodeCommands(geometry, operation, offsetBytes, lengthBytes, address) -> Uint8Array: the commands one after the
// other, each followed, for a discard, by its range.
Napi::Value EncodeCommandsFrom(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const NamespaceGeometry geometry = ParseGeometry(env, info[0]);
  const auto operation = static_cast<Operation>(WholeNumber(env, info[1], "the operation", kRead, kVerify));
  const auto offset = static_cast<uint64_t>(WholeNumber(env, info[2], "the offset", 0, kBytesMax));
  const auto length = static_cast<uint64_t>(WholeNumber(env, info[3], "the length", 0, kBytesMax));
  auto address = static_cast<uint64_t>(WholeNumber(env, info[4], "the address", 0, kBytesMax));
  const int error = CheckSupported(geometry, operation);
  if (error != 0) throw SystemError(env, error, "encode", "");
  if (offset % geometry.lba_bytes != 0 || length % geometry.lba_bytes != 0)
    throw SystemError(env, EINVAL, "encode", "");
  std::vector<uint8_t> bytes;
  const auto append = [&bytes](const void* from, size_t count) {
    const auto* first = static_cast<const uint8_t*>(from);
    bytes.insert(bytes.end(), first, first + count);
  };
  uint64_t lba = offset / geometry.lba_bytes;
  uint64_t rest = operation == kFlush ? 0 : length / geometry.lba_bytes;
  uint32_t commands = 0;
  do {
    if (++commands > kCommandsMax) throw Napi::RangeError::New(env, "more commands than anybody wants to look at");
    const uint64_t count = operation == kFlush ? 0 : NextPiece(geometry, operation, lba, rest);
    DeallocateRange range = {};
    nvme_uring_cmd command = EncodeCommand(geometry, operation, lba, count, address, &range);
    if (operation == kDiscard) command.addr = 0;
    append(&command, sizeof command);
    if (operation == kDiscard) append(&range, sizeof range);
    lba += count;
    rest -= count;
    address += count * geometry.lba_bytes;
  } while (rest > 0);
  Napi::Uint8Array made = Napi::Uint8Array::New(env, bytes.size());
  std::memcpy(made.Data(), bytes.data(), bytes.size());
  return made;
}

}  // namespace

NamespaceGeometry ParseGeometry(Napi::Env env, const Napi::Value& value) {
  if (!value.IsObject()) throw Napi::TypeError::New(env, "a geometry is an object");
  const Napi::Object object = value.As<Napi::Object>();
  const auto u32 = [&](const char* name, double min) {
    return static_cast<uint32_t>(WholeNumber(env, object.Get(name), name, min, kUint32Max));
  };
  NamespaceGeometry geometry;
  geometry.nsid = u32("nsid", 1);
  geometry.lba_bytes = u32("lbaBytes", 512);
  if (geometry.lba_bytes > 65536 || (geometry.lba_bytes & (geometry.lba_bytes - 1)) != 0)
    throw Napi::RangeError::New(env, "lbaBytes is a power of two up to 65536");
  geometry.lba_count = static_cast<uint64_t>(WholeNumber(env, object.Get("lbaCount"), "lbaCount", 0, kBytesMax));
  geometry.protection_type = u32("protectionType", 0);
  if (geometry.protection_type > 3) throw Napi::RangeError::New(env, "protectionType is 0 to 3");
  geometry.optional_commands = u32("optionalCommands", 0);
  geometry.transfer_blocks_max = u32("transferBlocksMax", 1);
  geometry.boundary_blocks = u32("boundaryBlocks", 0);
  geometry.zeroes_blocks_max = u32("zeroesBlocksMax", 1);
  geometry.verify_blocks_max = u32("verifyBlocksMax", 1);
  geometry.deallocate_blocks_max = u32("deallocateBlocksMax", 1);
  geometry.timeout_ms = u32("timeoutMs", 0);
  return geometry;
}

void DefineCommands(Napi::Env env, Napi::Object exports) {
  exports.Set("sendCommand", Napi::Function::New(env, SendCommandFrom, "sendCommand"));
  exports.Set("encodeCommands", Napi::Function::New(env, EncodeCommandsFrom, "encodeCommands"));
  exports.Set("namespaceId", Napi::Function::New(env, NamespaceIdFrom, "namespaceId"));
}

}  // namespace napi_nvme
