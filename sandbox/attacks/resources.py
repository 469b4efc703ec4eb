"""More than its share: processes, memory, disk, output, time."""

from __future__ import annotations

from sandbox.attacks.attack import LOOK, Attack, attack
from sandbox.base import Limits

MEMORY, PROCESSES = "memory of a run as a whole", "processes of a run"
SHORT = Limits(wall_seconds=1.0, memory_bytes=128 << 20, processes=16)

RESOURCES: tuple[Attack, ...] = (
    attack(
        "fork bomb",
        """
while True:
    try: os.fork()
    except OSError: pass
""",
        LOOK,
        statuses=("too_many_processes",),
        limits=SHORT,
        needs=PROCESSES,
    ),
    attack(
        "thread bomb",
        """
import threading
while True:
    try: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    except RuntimeError: break
os._exit(0)
""",
        LOOK,
        statuses=("too_many_processes",),
        needs=PROCESSES,
    ),
    attack(
        "memory bomb",
        "held = []\nwhile True: held.append(bytearray(os.urandom(1 << 20)))",
        LOOK,
        statuses=("out_of_memory",),
        needs=MEMORY,
    ),
    attack(
        "memory bomb in a child",
        """
if not os.fork():
    held = []
    while True: held.append(bytearray(os.urandom(1 << 20)))
os.wait()
""",
        LOOK,
        statuses=("out_of_memory",),
        needs=MEMORY,
    ),
    attack(
        "memory shared out among children",
        """
for _ in range(8):
    if not os.fork():
        held = bytearray(b"1" * (20 << 20))
        time.sleep(60)
os.wait()
""",
        LOOK,
        statuses=("out_of_memory",),
        limits=Limits(wall_seconds=20.0, memory_bytes=128 << 20, processes=16),
        needs=MEMORY,
    ),
    attack(
        "memory in no process, so that the kernel kills the fork server",
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
held = [os.memfd_create(str(number)) for number in range(50)]
piece = os.urandom(1 << 20)
for fd in held:
    for _ in range(15): os.write(fd, piece)
""",
        LOOK,
        statuses=("out_of_memory",),
        needs=MEMORY,
    ),
    attack(
        "disk fill",
        """
total = 0
for number in range(1000):
    try:
        with open(f"f{number}", "wb") as file:
            for _ in range(8): total += file.write(bytes(1 << 20))
    except OSError:
        if total < 1 << 20: broken("the disk was full before")
        break
if total > 65 << 20: broken(f"wrote {total} bytes")
""",
        LOOK,
        limits=Limits(wall_seconds=8.0, memory_bytes=256 << 20, processes=16),
    ),
    attack(
        "file size",
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    with open("f", "wb", buffering=0) as file:
        for _ in range(3): file.write(bytes(1 << 19))
except OSError: pass
size = os.path.getsize("f")
if not 0 < size <= 1 << 20: broken(f"a file of {size} bytes")
""",
        limits=Limits(wall_seconds=8.0, file_bytes=1 << 20),
    ),
    attack(
        "a hundred thousand files",
        "for number in range(100_000):\n    try: os.close(os.open(str(number), os.O_CREAT))\n    except OSError: break",
        LOOK,
        statuses=("finished", "out_of_memory", "wall_timeout"),
    ),
    attack("endless output", "while True: os.write(1, b'x' * 65536)", LOOK, statuses=("output_limit",)),
    attack("endless errors", "while True: os.write(2, b'x' * 65536)", LOOK, statuses=("output_limit",)),
    attack("CPU spin", "while True: pass", LOOK, statuses=("wall_timeout",), limits=SHORT),
    attack(
        "CPU spin in every process",
        "for _ in range(3): os.fork()\nwhile True: pass",
        LOOK,
        statuses=("wall_timeout",),
        limits=SHORT,
    ),
    attack(
        "CPU seconds",
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        LOOK,
        limits=Limits(wall_seconds=30.0, cpu_seconds=1.0),
    ),
    attack(
        "open files",
        """
opened = 0
try:
    while opened < 100_000: os.dup(0); opened += 1
except OSError: pass
if opened > 64: broken(f"opened {opened} files")
""",
        limits=Limits(wall_seconds=8.0, open_files=64),
    ),
    attack("sleep", "time.sleep(60)", LOOK, statuses=("wall_timeout",), limits=SHORT),
    attack(
        "ignored SIGTERM",
        "for number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except OSError: pass\ntime.sleep(60)",
        LOOK,
        statuses=("wall_timeout",),
        limits=SHORT,
    ),
    attack("stopped by itself", "os.kill(os.getpid(), signal.SIGSTOP)", LOOK, statuses=("wall_timeout",), limits=SHORT),
    attack("a stopped child", "child = os.fork()\nif not child: time.sleep(60)\nos.kill(child, signal.SIGSTOP)", LOOK),
    attack(
        "rlimit raise",
        """
import resource
for name in ("CPU", "FSIZE", "NOFILE", "CORE"):
    kind = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(kind)
    refused(f"more {name}", resource.setrlimit, kind, (hard + 1, hard + 1))
    refused(f"all {name}", resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""",
    ),
    attack(
        "priority",
        "refused('priority', os.nice, -5)\nrefused('real time', os.sched_setscheduler, 0, os.SCHED_FIFO, "
        "os.sched_param(1))",
    ),
    attack(
        "core dump",
        "if not os.fork(): os.abort()\nos.wait()\nif 'core' in str(os.listdir('.')): broken('a core file')",
        LOOK,
    ),
)
