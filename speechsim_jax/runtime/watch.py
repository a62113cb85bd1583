"""Word between the processes of one job: process 0 and each of the others over one connection.

Messages are JSON, one a line: [kind, value]. Everyone says every second that it is there. Who falls
silent, hangs up or fails ends the job on all, with one line that says who it was. Only the standard
library: it has to work where jax aborts.
"""

import collections
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from speechsim_jax.errors import UserError

# A process that has been told of a loss has so long to stop where it can; then it is stopped.
_GRACE_SECONDS = 5.0
_MOST_SECONDS_BETWEEN_BEATS = 1.0
_HANDSHAKE_SECONDS = 5.0
_RETRY_SECONDS = 0.1
_AGAIN = (
    "the job cannot finish without it; start all processes again with --resume to go on from the "
    "last checkpoints"
)


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among `count`, and where process 0 is met."""

    host: str
    port: int
    count: int
    index: int

    @property
    def address(self) -> str:
        """As it is written in a flag."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Line:
    """JSON messages over one connection."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._file = connection.makefile("r", encoding="utf-8")
        self._lock = threading.Lock()

    def send(self, kind: str, value: Any = None) -> None:
        """Say something; that nobody is there to hear it is for `receive` to find out."""
        data = json.dumps([kind, value]).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def receive(self, seconds: float | int) -> tuple[str, Any]:
        """The next message.

        Raises TimeoutError after so long a silence, OSError or ValueError if no more will come.
        """
        self._socket.settimeout(seconds)
        kind, value = json.loads(self._file.readline())
        return kind, value

    def close(self) -> None:
        """Hang up; what has been sent still arrives."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)


def meet(place: Place, seconds: float | int) -> dict[int, Line]:
    """Wait until all processes are there: lines to the others for process 0, to 0 for the others.

    Raises UserError if they are not there in time, or do not belong together.
    """
    return _host(place, seconds) if place.index == 0 else {0: _visit(place, seconds)}


def _host(place: Place, seconds: float | int) -> dict[int, Line]:
    lines: dict[int, Line] = {}
    until = time.monotonic() + seconds
    try:
        server = _listen(place.port)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {place.port} of this machine ({error.strerror}); "
            "choose another port, the same for all processes"
        ) from error
    with server:
        while len(lines) < place.count - 1:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                line = Line(server.accept()[0])
            except TimeoutError:
                missing = sorted(set(range(1, place.count)) - lines.keys())
                why = (
                    f"process {_listed(missing)} of {place.count} did not come within "
                    f"{seconds:g} s to {place.address}; start all {place.count}"
                )
                for line in lines.values():
                    line.send("refused", why)
                raise UserError(why) from None
            with contextlib.suppress(OSError, ValueError, TypeError):  # a stranger at the door
                _, (count, index) = line.receive(_HANDSHAKE_SECONDS)
                if count != place.count:
                    line.send("refused", f"this job has {place.count} processes, not {count}")
                elif not 0 < index < count:
                    line.send("refused", f"there is no process {index} of {count}")
                elif index in lines:
                    line.send("refused", f"there is already a process {index} of {count}")
                else:
                    lines[index] = line
    for line in lines.values():
        line.send("welcome")
    return lines


def _visit(place: Place, seconds: float | int) -> Line:
    until = time.monotonic() + seconds
    while True:
        left = max(until - time.monotonic(), 0.001)
        try:
            connection = socket.create_connection((place.host, place.port), timeout=left)
            break
        except OSError as error:  # not there yet
            if left <= _RETRY_SECONDS:
                raise UserError(
                    f"process 0 of {place.count} was not reached at {place.address} within "
                    f"{seconds:g} s ({error}); start all {place.count} processes, and check the "
                    "address"
                ) from error
            time.sleep(_RETRY_SECONDS)
    line = Line(connection)
    line.send("hello", [place.count, place.index])
    try:
        # Process 0 may have come later than this one, and waits as long as this one for the rest.
        kind, why = line.receive(2 * seconds)
    except (OSError, ValueError) as error:
        raise UserError(
            f"process 0 of {place.count} at {place.address} hung up before all were there"
        ) from error
    if kind != "welcome":
        raise UserError(f"process {place.index} cannot join at {place.address}: {why}")
    return line


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


class Watch:
    """Keeps the lines of one process: passes values on, and notices who has gone.

    When one has, `lost` says so, every call raises it as a UserError, and a process that does not
    stop within a few seconds (its main thread may be stuck waiting for the dead one) is ended with
    that line and exit code 2.
    """

    def __init__(self, lines: dict[int, Line], place: Place, silence_seconds: float | int):
        self.lost: str | None = None
        self._lines, self._place, self._silence = lines, place, silence_seconds
        self._heard = {peer: collections.deque() for peer in lines}
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=item, daemon=True) for item in lines.items()
        ]
        for thread in [*self._readers, threading.Thread(target=self._beat, daemon=True)]:
            thread.start()

    def collect(self, value: Any) -> list[Any] | None:
        """What JSON can hold, of every process: on process 0 a list by process, else None."""
        self.check()
        if self._place.index:
            self._lines[0].send("value", value)
            return None
        return [value] + [self._next(peer) for peer in sorted(self._lines)]

    def tell(self, value: Any) -> Any:
        """What process 0 says, on every process."""
        self.check()
        if self._place.index:
            return self._next(0)
        for line in self._lines.values():
            line.send("value", value)
        return value

    def check(self) -> None:
        """Raise UserError if a process is lost."""
        if self.lost is not None:
            raise UserError(self.lost)

    def wait_for_loss(self) -> None:
        """Raise UserError if a process is lost now or in the next seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None, _GRACE_SECONDS)
        self.check()

    def fail(self, why: str) -> None:
        """Tell the others that this process has failed, and wait until they know."""
        self._lose(f"{self._name(self._place.index)} failed: {why}")
        self._end()

    def close(self) -> None:
        """Part in peace; all others do the same now."""
        for line in self._lines.values():
            line.send("bye")
            line.close()
        self._end()

    def _end(self) -> None:
        self._over.set()
        until = time.monotonic() + _GRACE_SECONDS
        for thread in self._readers:
            thread.join(max(until - time.monotonic(), 0))

    def _name(self, index: int) -> str:
        return f"process {index} of {self._place.count}"

    def _next(self, peer: int) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._heard[peer] or self.lost is not None)
            self.check()
            return self._heard[peer].popleft()

    def _read(self, peer: int, line: Line) -> None:
        try:
            while True:
                kind, value = line.receive(self._silence)
                if kind == "value":
                    with self._changed:
                        self._heard[peer].append(value)
                        self._changed.notify_all()
                elif kind == "lost":
                    return self._lose(value)
                elif kind == "bye":
                    return None
        except TimeoutError:
            self._lose(f"{self._name(peer)} has not been heard of for {self._silence:g} s")
        except (OSError, ValueError):  # half a message is no JSON
            self._lose(f"{self._name(peer)} has gone (killed, or out of memory?)")

    def _lose(self, what: str) -> None:
        """Keep the first loss, and pass it on; who hears of it answers by passing it back."""
        with self._changed:
            if self.lost is not None:
                return
            self.lost = what if what.endswith(_AGAIN) else f"{what}; {_AGAIN}"
            self._changed.notify_all()
        for line in self._lines.values():
            line.send("lost", self.lost)
            line.close()

    def _beat(self) -> None:
        between = min(self._silence / 10, _MOST_SECONDS_BETWEEN_BEATS)
        while not self._over.wait(between):
            for line in self._lines.values():
                line.send("beat")
            if self.lost is not None and not self._over.wait(_GRACE_SECONDS):
                print(f"\nerror: {self.lost}", file=sys.stderr, flush=True)
                os._exit(2)


def relay(place: Place, port: int) -> int:
    """A port of this machine that leads to `port` of process 0, and never hangs up.

    jax aborts a process the moment its connection to process 0 breaks, with a stack trace for all
    explanation; behind this it does not see that before the watch has said what has happened.
    """
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(server, place.host, port), daemon=True).start()
    return server.getsockname()[1]


def _serve(server: socket.socket, host: str, port: int) -> None:
    while True:
        near = server.accept()[0]
        far = _reach(host, port)
        if far is None:
            near.close()  # and jax tries again
            continue
        for args in (near, far, True), (far, near, False):
            threading.Thread(target=_pump, args=args, daemon=True).start()


def _reach(host: str, port: int) -> socket.socket | None:
    """The service of process 0, which may be about to start."""
    until = time.monotonic() + _HANDSHAKE_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            far = socket.create_connection((host, port), timeout=_HANDSHAKE_SECONDS)
            far.settimeout(None)
            return far
        time.sleep(_RETRY_SECONDS)
    return None


def _pump(source: socket.socket, target: socket.socket, passes_end: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    if passes_end:  # jax here has parted; its service would wait five seconds for what it left open
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
