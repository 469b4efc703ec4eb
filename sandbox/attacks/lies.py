"""At the supervisor: forged results, a killed fork server, and failures of its own dressed up as ours."""

from __future__ import annotations

from sandbox.attacks.attack import LOOK, Attack, attack
from sandbox.base import Limits

FORGED = """
import json, struct
told = {"cause": "exit", "status": 0, "wall": 0, "cpu": 0, "peak": 0, "cut": [False, False], "doubt": "", "oom": 0}
told = json.dumps(told).encode()
frame = struct.pack("!cI", b"D", len(told)) + told
docker = struct.pack(">BxxxL", 1, len(frame)) + frame
"""

LIES: tuple[Attack, ...] = (
    attack(
        "forged results: on every file descriptor, and the parent's",
        FORGED
        + """
for fd in range(1024):
    if fd == 2: continue
    for bytes_ in (frame, docker):
        try: os.write(fd, bytes_)
        except OSError: pass
for name in ("0", "1", "2", "3"):
    refused(f"the parent's {name}", open, f"/proc/1/fd/{name}", "wb", buffering=0)
tried()
os.kill(os.getpid(), signal.SIGKILL)
""",
        LOOK,
    ),
    attack(
        "forged results: frames as output",
        FORGED + "os.write(1, frame * 100); os.write(1, docker); tried(); os._exit(3)",
        LOOK,
    ),
    attack(
        "signals to the fork server",
        """
for number in range(1, 65):
    for _ in range(3):
        try: os.kill(1, number)
        except OSError: pass
time.sleep(0.1)
""",
        LOOK,
    ),
    attack(
        "signals to everybody",
        "if not os.fork():\n    time.sleep(0.1); os.kill(-1, signal.SIGKILL)\ntime.sleep(2)",
        LOOK,
    ),
    attack(
        "limits and priority of the fork server",
        """
import resource
for name in ("CPU", "AS", "NOFILE", "FSIZE", "DATA", "STACK"):
    refused(f"its {name}", resource.prlimit, 1, getattr(resource, "RLIMIT_" + name), (0, 0))
refused("its priority", os.setpriority, os.PRIO_PROCESS, 1, 19)
refused("its processors", os.sched_setaffinity, 1, {0})
refused("its scheduler", os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
refused("its memory order", open, "/proc/1/oom_score_adj", "w")
""",
        LOOK,
    ),
    attack(
        "a flood of signals and zombies",
        """
end = time.time() + 1
while time.time() < end:
    os.kill(1, signal.SIGCHLD)
    try:
        if not os.fork():
            os.fork()
            os._exit(0)
    except OSError: time.sleep(0.001)
""",
        LOOK,
        statuses=("finished", "too_many_processes"),
    ),
    attack("closed streams", "os.closerange(0, 100)\nos._exit(7)", LOOK),
    attack("killed by itself", "tried(); os.kill(os.getpid(), signal.SIGKILL)", LOOK),
    attack(
        "killed by a child",
        "child = os.fork()\nif not child:\n    os.kill(os.getppid(), signal.SIGKILL); os._exit(0)\ntime.sleep(5)",
        LOOK,
    ),
    attack(
        "the engine's words",
        "os.write(1, b'Error response from daemon: No such container: x\\n'); "
        "os.write(2, b'bwrap: setting up uid map: Permission denied\\n'); tried(); os._exit(125)",
        LOOK,
    ),
    attack("the supervisor's exit codes", "tried(); os._exit(137)", LOOK),
    attack(
        "streams held open by a child", "if not os.fork():\n    os.setsid(); time.sleep(60)\ntried(); os._exit(0)", LOOK
    ),
    attack(
        "streams held in a message that nobody reads",
        """
import array, socket
one, two = socket.socketpair()
one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2, two.fileno()]))])
two.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2, one.fileno()]))])
""",
        LOOK,
        limits=Limits(wall_seconds=4.0),
    ),
)
