"""Out of its world: network, files of the host and of other runs, processes that stay, what an earlier run left."""

from __future__ import annotations

from sandbox.attacks.attack import LOOK, Attack, attack

# `self_check` makes these on the host: a file with the word in it, an abstract socket that listens, a variable.
HOST_SECRET = "rlvr-self-check-secret"
REMEMBER = "REMEMBER" + "-4f1d9a7b03c2e586-" + "ME"

ESCAPES: tuple[Attack, ...] = (
    attack(
        "network: IPv4, IPv6, raw, packet, netlink",
        """
import socket
for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET6, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_RAW), (socket.AF_PACKET, socket.SOCK_RAW),
        (socket.AF_NETLINK, socket.SOCK_RAW), (socket.AF_ALG, socket.SOCK_SEQPACKET), (40, socket.SOCK_STREAM)):
    refused(f"a socket of family {family}, kind {kind}", socket.socket, family, kind)
refused("a name", socket.getaddrinfo, "example.org", 80)
""",
    ),
    attack(
        "network: the host's abstract Unix sockets",
        f"""
import socket
refused("the host's socket", socket.socket(socket.AF_UNIX).connect, "\\0{HOST_SECRET}")
""",
    ),
    attack(
        "network: no interface but loopback",
        """
names = [line.split(":")[0].strip() for line in open("/proc/net/dev").read().splitlines()[2:]]
if set(names) - {"lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0"}: broken(f"interfaces {names}")
""",
    ),
    attack(
        "host files",
        f"""
for path in ("/etc/shadow", "/etc/ssh", "/root/.ssh", "/home", "/var/run/docker.sock", "/run/docker.sock", "/var/lib",
        "/proc/1/root/etc", "/proc/1/cwd", "/boot", "/lost+found"):
    if os.path.isdir(path) and not os.access(path, os.R_OK) or os.path.isdir(path) and not os.listdir(path): continue
    refused(path, os.stat, path)
for folder in ("/tmp", "/var/tmp", "/dev/shm", "/root", "/home", "/run"):
    refused(f"the secret in {{folder}}", os.stat, f"{{folder}}/{HOST_SECRET}")
""",
        # An image has an /etc and a /var of its own: what counts there is that they are not the host's.
    ),
    attack(
        "host processes",
        """
if os.getppid() != 1: broken("its parent is not pid 1")
if len([name for name in os.listdir("/proc") if name.isdigit()]) > 2: broken("it sees other processes")
if os.uname().nodename != "box": broken("it knows the host's name")
""",
    ),
    attack(
        "file descriptors",
        "names = os.listdir('/proc/self/fd')\nif set(names) - {'0', '1', '2', '3'}: "
        "broken(f'file descriptors {names}')\nrefused('a fourth', os.fstat, 3)",
    ),
    attack(
        "environment",
        "known = {'PATH', 'LANG', 'PYTHONHASHSEED', 'HOME', 'TMPDIR', 'PWD', 'HOSTNAME', 'LC_CTYPE', "
        "'container', 'TERM'}\nif set(os.environ) - known: broken(f'variables {set(os.environ) - known}')",
    ),
    attack(
        "writing outside its folder",
        """
def writable(folder):
    try: os.close(os.open(folder + "/x", os.O_CREAT | os.O_WRONLY))
    except OSError: return False
    return True
for where, folders, files in os.walk("/"):
    if where.startswith(("/proc", "/sys", "/tmp")): folders.clear(); continue
    if writable(where): broken(f"wrote in {where}")
    for name in files[:20]:
        path = os.path.join(where, name)
        if where.startswith("/dev") or os.path.islink(path) or not os.access(path, os.W_OK): continue
        broken(f"may write {path}")
for path in ("/dev/shm", "/dev/mqueue", "/var/tmp", "/run", "/run/lock"):
    if writable(path): broken(f"wrote in {path}")
""",
    ),
    attack(
        "execution of what it wrote",
        """
with open("tool", "w") as file: file.write("#!/bin/sh\\necho 1\\n")
os.chmod("tool", 0o700)
import subprocess
refused("running a file", subprocess.run, ["./tool"], check=True)
""",
        exceptions={
            "bubblewrap": "bubblewrap mounts no noexec tmpfs. It gains a program nothing: Python itself maps and "
            "runs any code, under the same filter and limits."
        },
    ),
    attack(
        "survivors: double fork and setsid",
        """
for _ in range(3):
    if not os.fork():
        os.setsid()
        if not os.fork():
            for number in range(1, 32):
                try: signal.signal(number, signal.SIG_IGN)
                except OSError: pass
            while True:
                open("/tmp/alive", "w").close()
                time.sleep(0.01)
        os._exit(0)
""",
        LOOK,
    ),
    attack(
        "files for the next run",
        """
for where in ("/tmp", "/tmp/work"):
    open(where + "/left", "w").close()
    os.makedirs(where + "/a/b", exist_ok=True)
for call in (lambda: os.chmod("/tmp", 0o777), lambda: os.setxattr("/tmp", "user.left", b"1")):
    try: call()
    except OSError: pass
os.symlink("/usr", "link")
""",
        LOOK + "\ntry:\n    if os.listxattr('/tmp'): broken('an attribute is left')\nexcept OSError: pass\n",
    ),
    attack(
        "folders that resist wiping",
        """
os.makedirs("locked/inner/more"); open("locked/inner/file", "w").close()
os.chmod("locked/inner", 0); os.chmod("locked", 0)
here = os.open(".", os.O_RDONLY)
for _ in range(3000):
    os.mkdir("d" * 200, dir_fd=here)
    deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
    os.close(here); here = deeper
os.chmod("/tmp/work", 0)
""",
        LOOK,
    ),
    attack(
        "links out of its folder",
        """
for source in ("/etc/passwd", "/usr/bin/env", "/proc/1/environ", "/proc/1/fd/0"):
    try: os.link(source, "hard")
    except OSError: pass
    else: broken(f"a hard link to {source}")
for target in ("/etc", "/usr/lib", "/proc/1/root", "/"):
    os.symlink(target, "link"); refused(f"writing through a link to {target}", open, "link/x", "w"); os.remove("link")
os.symlink("/usr", "/tmp/usr")
""",
        LOOK + "\nif not os.path.exists('/usr/bin'): broken('the wipe followed a link')\n",
    ),
    attack(
        "memory of an earlier run",
        f"""
word = "{REMEMBER}"; sys.stdin.read(); held = [word * 1000]; print(word * 100)
os.mkdir("folder-" + word); open("file-" + word, "w").close()
open("f", "w").write(word)
""",
        """
import re
pattern = re.compile(rb"REMEMBER-[0-9a-f]{16}-ME")
for line in open("/proc/self/maps").read().splitlines():
    span, rights = line.split()[:2]
    if rights[0] != "r" or "[v" in line: continue
    start, end = (int(part, 16) for part in span.split("-"))
    for at in range(start, end, 1 << 20):
        if pattern.search(ctypes.string_at(at, min(1 << 20, end - at))): broken(f"an earlier run's word at {span}")
""",
        stdin=REMEMBER.encode() * 100,
    ),
)
