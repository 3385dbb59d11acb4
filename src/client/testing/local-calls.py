"""Calls of the kernel on a local directory, as any user, for the suites in ../posix: one JSON line in, one out. Run as root."""
import ctypes
import errno
import json
import os
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
UTIME_NOW, UTIME_OMIT = 0x3FFFFFFF, 0x3FFFFFFE


class Timespec(ctypes.Structure):
    _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]


def check(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def timespec(time):
    if time == "now":
        return Timespec(0, UTIME_NOW)
    if time == "omit":
        return Timespec(0, UTIME_OMIT)
    return Timespec(*divmod(int(time), 10**9))


def utimens(path, atime, mtime, follow):
    times = (Timespec * 2)(timespec(atime), timespec(mtime))
    check(libc.utimensat(AT_FDCWD, path.encode(), times, 0 if follow else AT_SYMLINK_NOFOLLOW))


def rename(source, target, flags):
    check(libc.renameat2(AT_FDCWD, source.encode(), AT_FDCWD, target.encode(), flags))


def with_file(path, flags, use):
    fd = os.open(path, flags | os.O_NONBLOCK)
    try:
        return use(fd)
    finally:
        os.close(fd)


def attributes(found):
    times = {name: str(getattr(found, f"st_{name}_ns")) for name in ("atime", "mtime", "ctime")}
    return {
        "type": stat.S_IFMT(found.st_mode),
        "mode": stat.S_IMODE(found.st_mode),
        "nlink": found.st_nlink,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "size": found.st_size,
        "rdev": found.st_rdev,
        "ino": found.st_ino,
        **times,
    }


def nameless(path, flags, mode, name):
    fd = os.open(path, os.O_TMPFILE | flags, mode)
    try:
        if name is not None:
            # os.link would not follow.
            check(libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, name.encode(), AT_SYMLINK_FOLLOW))
    finally:
        os.close(fd)


def write(fd, text):
    os.write(fd, text.encode())


calls = {
    "open": lambda path, flags, mode: os.close(os.open(path, flags | os.O_NONBLOCK, mode)),
    "write": lambda path, text: with_file(path, os.O_WRONLY, lambda fd: write(fd, text)),
    "read": lambda path: with_file(path, os.O_RDONLY, lambda fd: os.read(fd, 1 << 16).decode()),
    "nameless": nameless,
    "write_at": lambda path, offset, letter, count: with_file(
        path, os.O_WRONLY, lambda fd: check(os.pwrite(fd, letter.encode() * count, offset) - count)
    ),
    "read_at": lambda path, offset, length: with_file(
        path, os.O_RDONLY, lambda fd: os.pread(fd, length, offset).decode("latin1")
    ),
    "mkdir": os.mkdir,
    "mknod": os.mknod,
    "symlink": os.symlink,
    "link": lambda source, path: os.link(source, path, follow_symlinks=False),
    "rename": rename,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "chmod": os.chmod,
    "fchmod": lambda path, mode: with_file(path, os.O_RDONLY, lambda fd: os.fchmod(fd, mode)),
    "chown": os.chown,
    "fchown": lambda path, uid, gid: with_file(path, os.O_RDONLY, lambda fd: os.fchown(fd, uid, gid)),
    "lchown": os.lchown,
    "utimens": utimens,
    "truncate": os.truncate,
    "ftruncate": lambda path, flags, size: with_file(path, flags, lambda fd: os.ftruncate(fd, size)),
    "fallocate": lambda path, flags, mode, offset, length: with_file(
        path, flags, lambda fd: check(libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))
    ),
    "seek": lambda path, offset, what: with_file(
        path, os.O_RDONLY, lambda fd: os.lseek(fd, offset, os.SEEK_DATA if what == "data" else os.SEEK_HOLE)
    ),
    "access": lambda path, mode: check(libc.syscall(439, AT_FDCWD, path.encode(), mode, 0x200)),
    "stat": lambda path: attributes(os.stat(path)),
    "lstat": lambda path: attributes(os.lstat(path)),
    "readdir": lambda path: sorted(os.listdir(path)),
    "readlink": os.readlink,
    "setxattr": lambda path, name, value, flags: os.setxattr(path, name, bytes.fromhex(value), flags, follow_symlinks=False),
    "getxattr": lambda path, name: os.getxattr(path, name, follow_symlinks=False).hex(),
    "listxattr": lambda path: sorted(os.listxattr(path, follow_symlinks=False)),
    "removexattr": lambda path, name: os.removexattr(path, name, follow_symlinks=False),
}


def become(user):
    os.seteuid(0)
    os.setgroups(user["groups"])
    os.setegid(user["gid"])
    os.umask(user["umask"])
    os.seteuid(user["uid"])


for line in sys.stdin:
    request = json.loads(line)
    try:
        become(request["user"])
        answer = {"value": calls[request["call"]](*request["args"])}
    except OSError as error:
        answer = {"code": errno.errorcode.get(error.errno, str(error.errno))}
    print(json.dumps(answer), flush=True)
