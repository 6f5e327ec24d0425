"""What a process gives up, for good, before it runs code that a model wrote: all of it on Linux
(x86_64, aarch64), a part elsewhere."""

import ctypes
import os
import struct
import sys

try:
    import resource
except ImportError:             # Windows
    resource = None

MB = 1 << 20
# Limits of one program; the limit of processor time follows from its timeout.
LIMITS = {"AS": 512 * MB, "FSIZE": 8 * MB, "NOFILE": 64, "CORE": 0}
STEPS = ("session", *(f"rlimit_{name.lower()}" for name in (*LIMITS, "CPU")), "no_new_privs",
         "landlock", "capabilities", "seccomp")
LIBC = None if sys.platform == "win32" else ctypes.CDLL(None, use_errno=True)
# why no program can be run on this system, or ""
UNABLE = ""
if resource is None or not hasattr(os, "fork"):
    UNABLE = ("programs that a model wrote run confined, which takes fork() and limits that this "
              f"system ({sys.platform}) lacks; score them on Linux, or on Windows inside WSL2")

# System calls refused with EPERM, x86_64 | aarch64. The rest is harmless within the other limits,
# or newer than 449, the last number that was reviewed, and answered ENOSYS, on which libc falls
# back to an older call.
DENIED = {
    "sockets, but for socketpair, which asyncio opens":
        "41-52 54-55 288 299 307 | 198 200-212 242-243 269",
    "processes; clone is below":
        "57-59 322 | 221 281",
    "signals to others":
        "62 129 200 234 297 424 434 | 129-131 138 240 424 434",
    "memory, files, scheduling of others":
        "101 141-142 144 203 251 310-312 314 438 440 448 | "
        "30 117-119 122 140 270-272 274 438 440 448",
    "watching files, also those that may not be read":
        "253-255 294 | 26-28",
    "owner, mode, times, size, attributes of files, which Landlock lets pass":
        "76 90-94 132 188-190 197-199 235 260-261 268 280 | 5-7 14-16 45 52-55 88",
    "ids, capabilities, sessions, prctl":
        "105-106 109 112-114 116-117 119 122-123 126 157 | 91 143-147 149 151-152 154 157 159 167",
    "memory outside the limits":
        "29-31 64-71 240-245 319 447 | 180-197 279 447",
    "io_uring: file calls unseen by filters":
        "425-427 | 425-427",
    "the kernel":
        "103 133-136 139 153-156 159 161-185 212 227 236-239 246 248-250 256 259 272 279 298 "
        "300-301 303-306 308 313 320-321 323 428-433 442-443 | "
        "18 33 39-42 51 58 60 81 89 92 97 104-106 112 116 142 161-162 170-171 217-219 224-225 "
        "235-239 241 262-268 273 280 282 294 428-433 442-443",
}

# Calls that are good or bad by one argument: (numbers, argument, test, constants, good). The kernel
# reads the requests of ioctl and fcntl as 32 bits, and so do we.
JUMP_IF_SET, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_MORE = 0x45, 0x15, 0x35, 0x25
LOAD, RETURN = 0x20, 0x06                       # of the kernel's language for packet filters
BY_ARGUMENT = (
    # clone: threads (CLONE_THREAD) yes, processes no
    ((56, 220), 0, JUMP_IF_SET, (0x10000,)),
    # prlimit64: of oneself yes, of others no
    ((302, 261), 0, JUMP_IF_EQUAL, (0,)),
    # fcntl: duplicates, flags, locks. Not owner, signal, lease or notice, by which the kernel sends
    # a signal to whom one names
    ((72, 25), 1, JUMP_IF_EQUAL, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030)),
    # ioctl: TCGETS and TCGETS2 (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
    # Not FIOSETOWN, SIOCSPGRP, FIOASYNC, which do the same for sockets
    ((16, 29), 1, JUMP_IF_EQUAL, (0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
)


def libc(name, *args):
    """Call a function of libc. Raises OSError, and AttributeError where there is none."""
    # ctypes would pass a bare int as 32 bits
    long_args = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = getattr(LIBC, name)(*long_args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def landlock_abi():
    """The version of Landlock in this kernel. Raises OSError where there is none."""
    return libc("syscall", 444, None, 0, 1)


def landlock(folder):
    """Write below folder only; read there, and what Python itself reads. From ABI 4 no TCP, from
    ABI 6 no signals to others; seccomp refuses both everywhere."""
    abi = landlock_abi()
    every_right = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = libc("syscall", 444, struct.pack("QQQ", every_right, 3, 3), size, 0)
    write = 1 << 1 | 1 << 14                                 # write to a file, cut it off
    look = 1 << 2 | 1 << 3                                   # read a file, list a folder
    manage = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8               # remove and make folders and files
    rules = {folder: write | look | manage, os.devnull: write | look}
    readable = [os.path.dirname(os.__file__), sys.base_prefix + "/lib", "/lib",
                "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache",
                "/dev/urandom"]
    for path in (*readable, *rules):
        if not os.path.exists(path):
            continue
        fd = os.open(path, os.O_PATH)
        allowed = rules.get(path, look) & every_right
        if not os.path.isdir(path):
            allowed &= write | 1 << 2
        libc("syscall", 445, ruleset, 1, struct.pack("=Qi", allowed, fd), 0)
        os.close(fd)
    libc("syscall", 446, ruleset, 0)


def seccomp():
    """Install the filter of DENIED and BY_ARGUMENT. KeyError on other kinds of machines."""
    machines = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
    column, arch = machines[os.uname().machine]
    allow, deny, no_such_call, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    code = [(LOAD, 0, 0, 4), (JUMP_IF_EQUAL, 1, 0, arch),
            (RETURN, 0, 0, kill),                            # 32-bit calls have other numbers
            (LOAD, 0, 0, 0), (JUMP_IF_AT_LEAST, 1, 0, 450),
            (JUMP_IF_EQUAL, 0, 1, 435),                      # clone3 hides its flags
            (RETURN, 0, 0, no_such_call)]
    for numbers, argument, test, constants in BY_ARGUMENT:
        block = [(LOAD, 0, 0, 16 + 8 * argument)]
        for constant in constants:
            block += [(test, 0, 1, constant), (RETURN, 0, 0, allow)]
        block += [(RETURN, 0, 0, deny)]
        code += [(JUMP_IF_EQUAL, 0, len(block), numbers[column]), *block]
    for span in " ".join(group.split("|")[column] for group in DENIED.values()).split():
        first, _, last = span.partition("-")
        code += [(JUMP_IF_AT_LEAST, 0, 2, int(first)), (JUMP_IF_MORE, 1, 0, int(last or first)),
                 (RETURN, 0, 0, deny)]
    code += [(RETURN, 0, 0, allow)]
    packed = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(packed)
    program = struct.pack("HP", len(code), ctypes.addressof(buffer))
    libc("prctl", 22, 2, program, 0, 0)


def limit(name, value):
    """Lower a resource limit of this process; what is lower already stays."""
    which = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def confine(folder, timeout):
    """Give up, for good, what a small function does not need; returns which of STEPS are in force.

    Each step stands alone: where the platform refuses one, the others hold. Root keeps its uid (its
    Python may lie where nobody else can read) but no capability.
    """
    in_force = []

    def step(name, action, *args):
        try:
            action(*args)
            in_force.append(name)
        except (OSError, ValueError, KeyError, AttributeError):
            pass                                             # its absence from in_force says so

    os.chdir(folder)
    step("session", os.setsid)
    step("", libc, "prctl", 4, 1, 0, 0, 0)                   # the zygote looks at its open files
    for name, value in LIMITS.items():
        step(f"rlimit_{name.lower()}", limit, name, value)
    step("rlimit_cpu", limit, "CPU", int(timeout) + 2)       # in case the zygote itself is held up
    step("no_new_privs", libc, "prctl", 38, 1, 0, 0, 0)
    step("landlock", landlock, folder)
    step("capabilities", libc, "capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    step("seccomp", seccomp)
    if "seccomp" not in in_force:
        # second best: it stops threads as well, since it counts all of a user's
        step("rlimit_nproc", limit, "NPROC", 0)
    return [name for name in in_force if name]
