"""Boxes of Docker: a container each, with the fork server as its pid 1 and the attach socket as the channel to it.

Any engine that the SDK reaches will do: `DOCKER_HOST` (unix:// or tcp://), or the default socket. When this process is
killed, the engine closes its containers' stdin, and their fork servers end by themselves; what lies about nevertheless
carries a label, and the next one to start removes it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import ssl
from contextlib import suppress
from typing import Any

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import LogConfig, Ulimit

from sandbox import inside
from sandbox.base import Language
from sandbox.blocking import in_thread
from sandbox.box import Box, BoxLost, BoxSpec, Counted, Fallbacks, StreamWire
from sandbox.inside.server import SCRATCH
from sandbox.limits import FIRST_UID, PERIOD_MICROSECONDS, SCRATCH_BYTES, SERVER_BYTES, UIDS
from sandbox.owner import is_gone, owner
from sandbox.pool import Guarantee, SandboxUnavailable
from sandbox.seccomp import profile

IMAGE_VERSION = 1
LABEL = "rlvr.sandbox.owner"
PING_SECONDS = 10
ENGINE_SECONDS = 60
_ERRORS = (DockerException, requests.RequestException, OSError)

logger = logging.getLogger(__name__)


def image_name(language: Language) -> str:
    """What `scripts/build-sandbox-image` builds."""
    return f"rlvr-sandbox-{language}:{IMAGE_VERSION}"


class Docker:
    """See the module. `cpus` is what one box may use, `runtime` an OCI runtime of the engine, such as "runsc"."""

    name = "docker"

    def __init__(self, cpus: float = 1.0, runtime: str | None = None) -> None:
        """Raises `SandboxUnavailable`."""
        self._cpus, self._runtime = cpus, runtime
        self._uids = itertools.cycle(range(FIRST_UID + os.getpid() * 1000 % UIDS, FIRST_UID + UIDS))
        self._forsaken: set[str] = set()  # containers that could not be removed when their time had come
        try:
            self._client = docker.from_env(timeout=PING_SECONDS)
            self._info = self._client.info()
        except _ERRORS as error:
            raise SandboxUnavailable(f"no Docker engine answers ({error}); start one, or set DOCKER_HOST") from error
        self._client.api.timeout = ENGINE_SECONDS
        if runtime is not None and runtime not in self._info.get("Runtimes", {}):
            raise SandboxUnavailable(
                f"the engine has no runtime {runtime!r}; it has {', '.join(self._info['Runtimes'])}"
            )
        self._check_image("python")
        self._sweep()

    def guarantees(self) -> tuple[Guarantee, ...]:
        info, options = self._info, " ".join(self._info.get("SecurityOptions") or ())
        blind = "rootless" in options and str(info.get("CgroupVersion")) == "1"
        filtered = "seccomp" in options and self._runtime is None
        without = "a rootless engine under cgroup version 1 ignores it" if blind else "the engine says that it cannot"

        def limit(name: str, key: str) -> Guarantee:
            kept = bool(info.get(key, True)) and not blind
            return Guarantee(name=name, kept=kept, how="control group" if kept else without)

        return (
            Guarantee(name="no network", kept=True, how="network mode none, seccomp"),
            Guarantee(name="no host files", kept=True, how="image, read-only"),
            Guarantee(name="no host processes", kept=True, how="pid namespace; the fork server is pid 1"),
            Guarantee(
                name="system calls by allow-list",
                kept=filtered,
                how="seccomp"
                if filtered
                else f"runtime {self._runtime} has its own kernel"
                if self._runtime
                else options,
            ),
            Guarantee(name="a user of its own outside", kept=True, how="one a box"),
            limit("memory of a run as a whole", "MemoryLimit"),
            limit("processes of a run", "PidsLimit"),
            limit("processor share of a box", "CpuCfsQuota"),
            Guarantee(name="no execution from the scratch folder", kept=True, how="noexec tmpfs, but for C++"),
        )

    async def start(self, spec: BoxSpec) -> Box:
        """See `sandbox.pool.Backend`."""
        creation = asyncio.ensure_future(in_thread(self._create, spec))
        try:
            container, channel = await asyncio.shield(creation)
        except asyncio.CancelledError:
            creation.add_done_callback(self._forsake)
            raise
        except ImageNotFound as error:
            self._check_image(spec.language)
            raise BoxLost(f"the engine lost its image: {error}", from_outside=True) from error
        except _ERRORS as error:
            raise BoxLost(f"the engine made no container: {error}", from_outside=True) from error
        holder = _Container(self, container)
        try:
            wire = _AttachWire(*await asyncio.open_connection(sock=channel))
            box = Box(spec, wire, holder, Fallbacks())
            await box.greet()
            box.require(own_kernel=self._runtime is not None)
        except BaseException:
            await holder.destroy()
            raise
        return box

    async def close(self) -> None:
        """See `sandbox.pool.Backend`."""
        await in_thread(self._remove_forsaken)
        self._client.close()

    # ---- blocking, in threads

    def _create(self, spec: BoxSpec) -> tuple[str, socket.socket]:
        self._remove_forsaken()
        api, uid = self._client.api, next(self._uids)
        executable = "exec" if spec.language == "cpp" else "noexec"  # a compiled program must run somewhere
        container = api.create_container(
            image_name(spec.language),
            ["python3", "-s", "-B", "-c", inside.text()],
            user=f"{uid}:{uid}",
            hostname="box",
            stdin_open=True,
            labels={LABEL: owner()},
            host_config=api.create_host_config(
                network_mode="none",
                ipc_mode="none",
                read_only=True,
                tmpfs={
                    SCRATCH: f"size={SCRATCH_BYTES},nr_inodes=65536,mode=1777,nosuid,nodev,{executable}",
                    # The engine mounts it, and anybody may write there.
                    "/dev/mqueue": "ro,size=4096,mode=0555",
                },
                mem_limit=spec.memory_bytes + SERVER_BYTES,
                memswap_limit=spec.memory_bytes + SERVER_BYTES,
                pids_limit=spec.processes + 1,
                cpu_period=PERIOD_MICROSECONDS,
                cpu_quota=int(PERIOD_MICROSECONDS * self._cpus),
                cap_drop=["ALL"],
                security_opt=["no-new-privileges", f"seccomp={profile()}"],
                ulimits=[Ulimit(name="core", soft=0, hard=0), Ulimit(name="nofile", soft=4096, hard=4096)],
                log_config=LogConfig(type="none"),
                runtime=self._runtime,
            ),
        )["Id"]
        try:
            channel = self._attach(container)
            api.start(container)
        except BaseException:
            self.remove(container)
            raise
        return container, channel

    def _attach(self, container: str) -> socket.socket:
        raw = self._client.api.attach_socket(container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        inner = getattr(raw, "_sock", raw)
        if isinstance(inner, ssl.SSLSocket) or not isinstance(inner, socket.socket):
            raise SandboxUnavailable("an engine behind TLS or SSH: forward its socket, and set DOCKER_HOST=unix://...")
        # Taken from the SDK's objects, which hold each other in a circle and would close it when they are collected.
        channel = socket.socket(fileno=inner.detach())
        channel.setblocking(False)
        return channel

    def inspect(self, container: str) -> dict[str, Any]:
        """The container's state. Raises `NotFound`, or another of the SDK's errors."""
        state: dict[str, Any] = self._client.api.inspect_container(container)["State"]
        return state

    def remove(self, container: str) -> None:
        """Kill and remove; if the engine does not answer now, before a later container is made."""
        try:
            self._client.api.remove_container(container, force=True, v=True)
        except NotFound:
            pass
        except APIError as error:
            if error.status_code != 409:  # somebody removes it already
                self._forsaken.add(container)
        except _ERRORS:
            self._forsaken.add(container)

    def _remove_forsaken(self) -> None:
        for container in list(self._forsaken):
            self._forsaken.discard(container)
            self.remove(container)

    def _forsake(self, creation: asyncio.Future[tuple[str, socket.socket]]) -> None:
        if creation.cancelled() or creation.exception() is not None:
            return
        container, channel = creation.result()
        channel.close()
        asyncio.get_running_loop().run_in_executor(None, self.remove, container)

    def _sweep(self) -> None:
        """Remove what supervisors left that are gone."""
        with suppress(*_ERRORS):
            for found in self._client.api.containers(all=True, filters={"label": LABEL}):
                if is_gone(found["Labels"][LABEL]):
                    logger.info("removing container %s of a run that is gone", found["Id"][:12])
                    self.remove(found["Id"])

    def _check_image(self, language: Language) -> None:
        try:
            self._client.api.inspect_image(image_name(language))
        except ImageNotFound as error:
            raise SandboxUnavailable(
                f"the engine has no image {image_name(language)}: run scripts/build-sandbox-image {language}"
            ) from error
        except _ERRORS as error:
            raise SandboxUnavailable(f"the engine cannot be asked for its images: {error}") from error


class _Container:
    """A `sandbox.box.Holder`."""

    def __init__(self, backend: Docker, container: str) -> None:
        self._backend, self._container, self._gone = backend, container, False

    def counted(self) -> Counted:
        return Counted()  # the fork server reads its own control group, which the engine shows it read-only

    async def autopsy(self) -> tuple[str, bool, bool]:
        try:
            state = await in_thread(self._backend.inspect, self._container)
        except NotFound:
            return "its container was removed", False, True
        except _ERRORS as error:
            return f"the engine does not answer: {error}", False, True
        if state["Running"]:
            return "its container still runs", False, False
        return f"exit code {state['ExitCode']} {state.get('Error', '')}".strip(), bool(state["OOMKilled"]), False

    async def destroy(self) -> None:
        if not self._gone:
            self._gone = True
            await in_thread(self._backend.remove, self._container)


class _AttachWire(StreamWire):
    """The engine wraps what a container writes in frames of its own: stream, three zeros, length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._buffer, self._said = bytearray(), b""

    async def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            header = await super().read(8)
            data = await super().read(int.from_bytes(header[4:], "big"))
            if header[0] == 1:
                self._buffer += data
            else:
                self._said = (self._said + data)[-2000:]
                logger.debug("a fork server says: %s", data.decode(errors="replace"))
        content = bytes(self._buffer[:size])
        del self._buffer[:size]
        return content
