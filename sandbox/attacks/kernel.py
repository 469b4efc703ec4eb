"""At the kernel: /proc and /sys, system calls that ordinary programs do not make, other users' rights."""

from __future__ import annotations

from sandbox.attacks.attack import LOOK, Attack, attack

KERNEL: tuple[Attack, ...] = (
    attack(
        "/proc",
        """
for path in ("sys/kernel/core_pattern", "sys/kernel/hostname", "sys/vm/overcommit_memory", "sys/kernel/ns_last_pid",
        "sys/net/ipv4/ip_forward", "sys/user/max_user_namespaces", "sysrq-trigger", "irq/0/smp_affinity", "bus/pci",
        "1/oom_score_adj", "1/mem", "1/comm", "1/clear_refs", "1/uid_map", "1/coredump_filter"):
    refused(f"writing /proc/{path}", open, f"/proc/{path}", "r+b", buffering=0)
refused("writing /proc/1/attr/current", lambda: open("/proc/1/attr/current", "wb", buffering=0).write(b"x"))
def read(path):
    with open(path, "rb") as file:
        if not file.read(1): raise OSError("it is empty")
    return path
for path in ("1/environ", "1/mem", "1/maps", "1/io", "1/auxv", "1/syscall", "1/stack", "1/pagemap", "kcore", "kmsg"):
    refused(f"reading /proc/{path}", read, f"/proc/{path}")
refused("listing /proc/1/fd", os.listdir, "/proc/1/fd")
for name in ("root", "cwd", "exe", "fd/0", "fd/1", "ns/net"):
    refused(f"following /proc/1/{name}", os.readlink, f"/proc/1/{name}")
""",
    ),
    attack(
        "/sys and control groups",
        """
for where, folders, files in os.walk("/sys"):
    for name in files:
        path = os.path.join(where, name)
        if not os.access(path, os.W_OK) or os.path.islink(path): continue
        try: os.close(os.open(path, os.O_WRONLY))
        except OSError: continue
        broken(f"opened {path} for writing")
    try: os.mkdir(where + "/x")
    except OSError: continue
    broken(f"made a folder in {where}")
""",
    ),
    attack(
        "devices",
        """
for number, name in enumerate(("mem", "kmem", "port", "kmsg", "fuse", "kvm", "vda", "sda", "loop0", "net/tun", "tty0")):
    refused(name, open, f"/dev/{name}", "rb")
refused("mknod", os.mknod, "device", 0o20666, os.makedev(1, 1))
""",
    ),
    attack(
        "ptrace and other processes' memory",
        """
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
space = ctypes.create_string_buffer(8)
mine, theirs = Vector(ctypes.addressof(space), 8), Vector(0x400000, 8)
child = os.fork()
if not child: time.sleep(30)
for pid in (1, child):
    refused_call(f"PTRACE_ATTACH to {pid}", 101, 117, 16, pid, 0, 0)
    refused_call(f"PTRACE_SEIZE of {pid}", 101, 117, 0x4206, pid, 0, 0)
    refused_call(f"process_vm_readv of {pid}", 310, 270, pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    refused_call(f"process_vm_writev of {pid}", 311, 271, pid, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
    refused_call(f"pidfd_getfd of {pid}", 438, 438, os.pidfd_open(pid), 1, 0)
    refused_call(f"kcmp with {pid}", 312, 272, pid, pid, 0, 0, 0)
os.kill(child, 9)
""",
        LOOK,
    ),
    attack(
        "namespaces, mounts, roots",
        """
for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00000080):
    refused_call(f"unshare {flag:#x}", 272, 97, flag)
    if flag != 0x80:
        child = libc.syscall(56 if X86 else 220, flag | 17, 0, 0, 0, 0)
        if child == 0: os._exit(0)
        if child > 0: broken(f"clone {flag:#x}")
refused_call("clone3", 435, 435, 0, 0)
refused_call("setns", 308, 268, os.open("/proc/self/ns/net", os.O_RDONLY), 0)
refused_call("mount", 165, 40, b"none", b"/tmp", b"tmpfs", 0, 0)
refused_call("umount2", 166, 39, b"/proc", 2)
refused_call("open_tree", 428, 428, -100, b"/", 1)
refused_call("fsopen", 430, 430, b"tmpfs", 0)
refused_call("mount_setattr", 442, 442, -100, b"/", 0, 0, 0)
refused_call("pivot_root", 155, 41, b"/tmp", b"/tmp")
refused_call("chroot", 161, 51, b"/tmp")
refused_call("open_by_handle_at", 304, 265, -100, 0, 0)
""",
    ),
    attack(
        "keys, bpf, io_uring and their like",
        """
empty = ctypes.create_string_buffer(256)
refused_call("add_key", 248, 217, b"user", b"left", b"x", 1, -4)
refused_call("request_key", 249, 218, b"user", b"left", 0, -4)
refused_call("keyctl", 250, 219, 0, -3, 1)
refused_call("bpf", 321, 280, 0, empty, 128)
refused_call("io_uring_setup", 425, 425, 8, empty)
refused_call("perf_event_open", 298, 241, empty, 0, -1, -1, 0)
refused_call("userfaultfd", 323, 282, 0)
refused_call("fanotify_init", 300, 262, 0, 0)
refused_call("memfd_secret", 447, 447, 0)
refused_call("shmget", 29, 194, 0x1234, 4096, 0o1666)
refused_call("semget", 64, 190, 0x1234, 1, 0o1666)
refused_call("msgget", 68, 186, 0x1234, 0o1666)
refused_call("mq_open", 240, 180, b"left", os.O_CREAT | os.O_RDWR, 0o666, 0)
refused_call("io_setup", 206, 0, 8, empty)
refused_call("quotactl", 179, 60, 0, 0, 0, 0)
refused_call("syslog", 103, 116, 3, empty, 8)
""",
    ),
    attack(
        "the machine: modules, clock, name, restart",
        """
empty = ctypes.create_string_buffer(256)
refused_call("init_module", 175, 105, empty, 8, b"")
refused_call("finit_module", 313, 273, 0, b"", 0)
refused_call("kexec_load", 246, 104, 0, 0, 0, 0)
refused_call("reboot", 169, 142, 0xFEE1DEAD, 672274793, 0, 0)
refused_call("settimeofday", 164, 170, empty, 0)
refused_call("clock_settime", 227, 112, 0, empty)
refused_call("sethostname", 170, 161, b"x", 1)
refused_call("swapon", 167, 224, b"/tmp/x", 0)
refused_call("acct", 163, 89, b"/tmp/x")
refused_call("iopl", 172, 0, 3) if X86 else None
refused_call("ioperm", 173, 0, 0, 8, 1) if X86 else None
refused_call("modify_ldt", 154, 0, 0, empty, 8) if X86 else None
refused_call("personality", 135, 92, 0x0040000)
""",
    ),
    attack(
        "root, by setuid or by asking",
        """
import stat, subprocess
for call in (os.setuid, os.setgid, os.seteuid, os.setegid): refused(call.__name__, call, 0)
refused("setgroups", os.setgroups, [0])
if os.getuid() == 0 or os.geteuid() == 0: broken("it is root")
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    if int(status[name], 16): broken(f"{name} {status[name]}")
if status["NoNewPrivs"].strip() != "1": broken("it may gain rights by exec")
if status["Seccomp"].strip() != "2": broken("no seccomp filter")
for name in os.listdir("/usr/bin"):
    path = "/usr/bin/" + name
    try: mode = os.stat(path).st_mode
    except OSError: continue
    if mode & (stat.S_ISUID | stat.S_ISGID):
        shown = subprocess.run(["/bin/sh", "-c", f"exec -a sh {path} --version < /dev/null & cat /proc/$!/status"],
            capture_output=True, timeout=5, text=True).stdout
        if "\\nUid:" in shown and shown.split("\\nUid:")[1].split()[1] == "0": broken(f"{path} runs as root")
""",
        LOOK,
    ),
)
