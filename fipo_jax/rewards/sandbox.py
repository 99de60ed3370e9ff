"""What a verification process may do: little, so that a verdict on hostile text costs one sample its reward at most.

`environment` is what it inherits, `confine` what the kernel then holds it to. Nothing here needs or gives privileges;
each part holds for root, too, but for the bound on processes by user, which seccomp makes up for:

    resource limits   memory, CPU seconds, size of a written file, open files, no core dumps       every Unix
    Landlock          files: reads where Python and the project lie, writes nowhere                Linux 5.13
    seccomp           no network, no new processes, no signals to others, no system administration  Linux, x86-64, ARM64

Source: Linux man-pages landlock(7), seccomp(2), setrlimit(2); syscall numbers of the kernel's unistd tables.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable

# Of the parent's environment: what Python itself may need in order to start. No keys, no tokens, no home.
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
OPEN_FILES = 256


@dataclasses.dataclass(frozen=True)
class Limits:
  """memory_mb: address space, 10⁶ bytes. cpu_s: of the whole process. write_mb: size of one file; 0 = write nothing.

  folder: where it works. writable: folders that it may write to. readable: what it may read; () = everything but other
  processes' memory and environment. network, processes: whether it may open sockets to other machines, start programs.
  """

  memory_mb: int
  cpu_s: int
  write_mb: int
  folder: str
  writable: tuple[str, ...] = ()
  readable: tuple[str, ...] = ()
  network: bool = False
  processes: bool = False


def environment(names: Iterable[str], home: str) -> dict[str, str]:
  """The environment of a verification process: PASSED_ON, `names`, and a few settings.

  A verifier that imports JAX must not take the accelerator; one thread of linear algebra each; sets in one order.
  """
  kept = {name: os.environ[name] for name in (*PASSED_ON, *names) if name in os.environ}
  fixed = {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
  return {"HOME": home, "TMPDIR": home, "PYTHONDONTWRITEBYTECODE": "1", **fixed, **kept}


def imports() -> tuple[str, ...]:
  """Where modules and shared libraries lie: what a built-in verifier may read."""
  system = ("/usr", "/lib", "/lib64", "/bin", "/opt", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom")
  return tuple({os.path.realpath(path) for path in (*sys.path, sys.prefix, sys.base_prefix, *system) if path})


def confine(limits: Limits) -> list[str]:
  """Holds this process and its threads to the limits, for good. Returns what the system cannot hold, in words."""
  os.chdir(limits.folder)
  missing = []
  rlimits = {
    "AS": limits.memory_mb * 1_000_000, "CPU": limits.cpu_s, "FSIZE": limits.write_mb * 1_000_000,
    "NOFILE": OPEN_FILES, "CORE": 0,
  }  # fmt: skip
  if not limits.processes and sys.platform == "linux":  # elsewhere threads of other programs would count
    rlimits["NPROC"] = 0
  for name, value in rlimits.items():
    which = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
      resource.setrlimit(which, (bound, bound))
    except (ValueError, OSError):  # macOS does not bound address spaces
      missing.append(f"no bound on {name}")
  if sys.platform != "linux":
    return [*missing, "files, network and processes are not held back on this system"]
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS, which both of the following ask for
    return [*missing, "files, network and processes are not held back: no_new_privs was refused"]
  if reason := _landlock(libc, limits):
    missing.append(f"files are not held back: {reason}")
  if reason := _seccomp(libc, limits):
    missing.append(f"network, processes and signals are not held back: {reason}")
  return missing


# ---- files ----

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same number on all architectures
_READ_FILE, _READ_DIR, _EXECUTE = 1 << 2, 1 << 3, 1 << 0
_READ = _READ_FILE | _READ_DIR | _EXECUTE
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE  # rights that a rule for a file, not a folder, may name


def _landlock(libc, limits: Limits) -> str:
  """Allows reading and writing where the limits say so and nowhere else; returns why not, "" when it holds."""
  abi = libc.syscall(_CREATE_RULESET, None, 0, 1)
  if abi < 1:
    return "the kernel has no Landlock"
  handled = (1 << 13) - 1 | (1 << 13 if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
  attributes = struct.pack("Q", handled)
  ruleset = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
  if ruleset < 0:
    return os.strerror(ctypes.get_errno())
  rules = [(path, _READ) for path in limits.readable or _all_but_processes()]
  rules += [(path, handled) for path in (*limits.writable, "/dev/null")]
  for path, rights in rules:
    try:
      descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
      continue  # what is not there need not be allowed
    rights &= handled if os.path.isdir(path) else _OF_FILES & handled
    rule = struct.pack("=Qi", rights, descriptor)
    refused = libc.syscall(_ADD_RULE, ruleset, 1, rule, 0)
    os.close(descriptor)
    if refused:
      return f"{path}: {os.strerror(ctypes.get_errno())}"
  refused = libc.syscall(_RESTRICT_SELF, ruleset, 0)
  os.close(ruleset)
  return os.strerror(ctypes.get_errno()) if refused else ""


def _all_but_processes() -> list[str]:
  """The top folders but /proc, where other processes' environments can be read; of it, what describes the machine."""
  top = [entry.path for entry in os.scandir("/") if entry.name != "proc"]
  return [*top, f"/proc/{os.getpid()}", *(f"/proc/{name}" for name in ("cpuinfo", "meminfo", "stat", "version", "sys"))]


# ---- system calls ----

# name: (x86-64, ARM64); None where an architecture does not have it.
_PROCESSES = {"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)}
_SIGNALS = {
  "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
  "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
}  # fmt: skip
_ALWAYS = {
  "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "setrlimit": (160, 164),
  "mount": (165, 40), "umount2": (166, 39), "reboot": (169, 142), "sethostname": (170, 161), "init_module": (175, 105),
  "finit_module": (313, 273), "kexec_load": (246, 104), "add_key": (248, 217), "request_key": (249, 218),
  "keyctl": (250, 219), "unshare": (272, 97), "setns": (308, 268), "perf_event_open": (298, 241), "bpf": (321, 280),
  "userfaultfd": (323, 282), "pivot_root": (155, 41), "chroot": (161, 51), "settimeofday": (164, 170),
  "clock_settime": (227, 112), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "mknod": (133, None),
  "mknodat": (259, 33), "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
}  # fmt: skip
_NETWORK = {"socket": (41, 198), "connect": (42, 203), "bind": (49, 200)}
_CLONE, _CLONE3, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000


def _seccomp(libc, limits: Limits) -> str:
  """Refuses system calls that verdicts do not need; returns why not, "" when it holds."""
  if platform.machine() not in _ARCHITECTURES:
    return f"no table of system calls for {platform.machine()}"
  column, architecture = _ARCHITECTURES[platform.machine()]
  code: list[tuple[int, int, int, int]] = []  # (operation, jump if true, jump if false, operand)
  load = lambda offset: code.append((0x20, 0, 0, offset))  # a 32-bit word of seccomp_data
  give = lambda value: code.append((0x06, 0, 0, value))

  def refuse(number: int | None, error: int = errno.EPERM) -> None:
    if number is not None:
      code.append((0x15, 0, 1, number))
      give(_REFUSE | error)

  def refuse_unless(number: int, argument: int, operation: int, operand: int) -> None:
    """Refuses the call unless `argument <operation> operand`: 0x15 equal, 0x45 has a bit of it."""
    code.append((0x15, 0, 4, number))
    load(16 + 8 * argument)
    code.append((operation, 1, 0, operand))
    give(_REFUSE | errno.EPERM)
    load(0)

  load(4)
  code.append((0x15, 1, 0, architecture))
  give(_KILL)
  load(0)
  if column == 0:  # the x32 calls of x86-64 are the same ones under other numbers
    code.append((0x35, 0, 1, 0x40000000))
    give(_REFUSE | errno.ENOSYS)
  refused = dict(_ALWAYS)
  if not limits.network:
    refused |= _NETWORK  # of the machine itself, too: an agent or a daemon behind a socket is a way out
  if not limits.processes:
    refused |= _PROCESSES | _SIGNALS
  for numbers in refused.values():
    refuse(numbers[column])
  if not limits.processes:
    refuse(_CLONE3[column], errno.ENOSYS)  # its flags lie in memory, where a filter cannot look: libc goes on to clone
    refuse_unless(_CLONE[column], 0, 0x45, _CLONE_THREAD)
    refuse_unless(_TGKILL[column], 0, 0x15, os.getpid())  # abort() signals its own process
  refuse_unless(_PRLIMIT[column], 2, 0x15, 0)  # limits may be read, not set
  give(_ALLOW)
  program = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
  held = ctypes.create_string_buffer(program)

  class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

  filled = Program(len(code), ctypes.cast(held, ctypes.c_void_p))
  failed = libc.prctl(22, 2, ctypes.byref(filled), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
  return os.strerror(ctypes.get_errno()) if failed else ""
