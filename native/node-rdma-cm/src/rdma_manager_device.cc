#include "rdma_manager_device.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

namespace node_rdma_cm {
namespace {

struct Context {
  uint32_t ids = 0;
  int command_fd;
  int async_fd;
  // What the command descriptor was.
  dev_t file_system;
  ino_t inode;
  // In sysfs; taken away when the removal comes to the verbs. Another device may get the same path then.
  std::string class_path;
  ino_t class_inode;
};

struct Contexts {
  std::mutex mutex;
  std::unordered_map<const ibv_context*, Context> all;
};

Contexts& All() {
  // Never destroyed: worker threads may still run finalizers while the process exits.
  static auto* contexts = new Contexts();
  return *contexts;
}

// 0: not there.
ino_t InodeOf(const char* path) {
  struct stat found;
  return stat(path, &found) == 0 ? found.st_ino : 0;
}

bool IsGone(const Context& context) {
  struct stat found;
  if (stat(context.class_path.c_str(), &found) != 0) return errno == ENOENT;
  return context.class_inode != 0 && found.st_ino != context.class_inode;
}

bool IsUnchanged(const Context& context) {
  struct stat found;
  return fstat(context.command_fd, &found) == 0 && found.st_dev == context.file_system && found.st_ino == context.inode;
}

// False when it can't be done now.
bool Release(const Context& context) {
  if (!IsUnchanged(context)) return true;
  const int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (nothing < 0) return false;
  // The kernel's context lives while either is open.
  const bool done =
      dup3(nothing, context.async_fd, O_CLOEXEC) >= 0 && dup3(nothing, context.command_fd, O_CLOEXEC) >= 0;
  close(nothing);
  return done;
}

}  // namespace

void ManagerDevice::Hold(const ibv_context* context) {
  if (context == nullptr || held_ != nullptr) return;
  struct stat found;
  if (fstat(context->cmd_fd, &found) != 0) return;
  Contexts& contexts = All();
  const std::lock_guard lock(contexts.mutex);
  Context& entry = contexts.all[context];
  // Of a context that was at the same address before there may be an entry without ids.
  if (entry.ids == 0)
    entry = {0,
             context->cmd_fd,
             context->async_fd,
             found.st_dev,
             found.st_ino,
             context->device->dev_path,
             InodeOf(context->device->dev_path)};
  entry.ids++;
  held_ = context;
}

void ManagerDevice::LetGo() {
  if (held_ == nullptr) return;
  {
    Contexts& contexts = All();
    const std::lock_guard lock(contexts.mutex);
    contexts.all[held_].ids--;
    held_ = nullptr;
  }
  ReleaseRemoved();
}

void ManagerDevice::ReleaseRemoved() {
  Contexts& contexts = All();
  const std::lock_guard lock(contexts.mutex);
  std::erase_if(contexts.all, [](const auto& entry) {
    const Context& context = entry.second;
    return context.ids == 0 && IsGone(context) && Release(context);
  });
}

}  // namespace node_rdma_cm
