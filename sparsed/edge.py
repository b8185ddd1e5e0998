"""What every program of ours does at its edge: standard streams, one sentence for what goes wrong, the exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# What a shell expects of a program that Ctrl-C ended, whose reader went away, and that was told to stop.
INTERRUPTED, NO_READER, TERMINATED = 130, 141, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does: what there is by then is printed and written."""


class Stream(io.FileIO):
    """A standard stream that may be closed, or lose its reader or its disk.

    needed: the first loss is raised; otherwise, and after it, what is written goes nowhere. lost: what happened.
    """

    def __init__(self, number: int, shut: bool) -> None:
        super().__init__(number, "wb", closefd=False)
        self.lost: OSError | None = None
        self.needed = number == 1 or not shut
        self._shut = shut

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        if self.lost is not None:
            return size
        try:
            if self._shut:
                raise OSError(errno.EBADF, "it is closed")
            return super().write(data)
        except OSError as error:
            self.lost = error
            if self.needed:
                raise
            return size

    @property
    def matters(self) -> bool:
        """Something could not be written that somebody may miss; a reader that went away misses nothing."""
        unread = self._shut or isinstance(self.lost, BrokenPipeError)
        return self.lost is not None and (self.needed or not unread)


def go_on() -> None:
    """Called by a command that is asked for files, before its work: it goes on to its end, whoever reads or not."""
    for stream in _streams():
        stream.needed = False


def program(work: Callable[[], int | None]) -> int:
    """Runs a program's work → its exit code: what `work` returns (None is 0), 2 after a wrong value or a file that is
    not there, 1 where the work failed, 130 after Ctrl-C (and its kind, 143), 141 where the reader of the output went
    away. A failure is one sentence on standard error; of a reader that went away nothing is said.
    """
    with _guarded() as streams:
        code = 0
        try:
            code = int(work() or 0)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
            _say(" ".join(["stopped.", *map(str, error.args)]))
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            # RuntimeError: a device that failed, weights that give no finite numbers.
            if error not in [stream.lost for stream in streams]:
                code = 2 if isinstance(error, ValueError | FileNotFoundError) else 1
                for line in sentence(error).splitlines():
                    _say(f"error: {line}")
        except SystemExit as ended:  # argparse, after --help or a wrong option
            _flush()
            if not any(stream.matters for stream in streams):
                raise
            code = ended.code if isinstance(ended.code, int) else 1
        _flush()
        return code if code in (2, INTERRUPTED, TERMINATED) else _after(code, streams)


def _after(code: int, streams: list[Stream]) -> int:
    """The exit code, with what became of the streams."""
    for stream in streams:
        if not stream.matters:
            continue
        if isinstance(stream.lost, BrokenPipeError):
            return code or NO_READER
        if stream.fileno() == 1 and stream.lost is not None:
            _say(f"error: Standard output cannot be written: {stream.lost.strerror}.")
            _flush()
        code = code or 1
    return code


def sentence(error: BaseException) -> str:
    """What an error says, in its first line; of a value that is refused, in all."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    said = str(error).strip()
    return said if isinstance(error, ValueError) and said else (said.splitlines() or [type(error).__name__])[0]


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """As long as the block lasts, SIGTERM raises `Terminated` in the main thread, where nobody else waits for it."""
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def arrived(number: int, frame: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, arrived)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


@contextmanager
def _guarded() -> Iterator[list[Stream]]:
    """Standard output and error that can be lost, in place of this process's own. What a test or a notebook has put
    there stays. The number of a stream that was closed is taken, so that no other file gets it.
    """
    shut = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            shut.append(os.open(os.devnull, os.O_RDWR))  # the lowest free number is given
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stand_in(1, sys.stdout, 1 in shut)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stand_in(2, sys.stderr, 2 in shut)
    streams = _streams()
    try:
        yield streams
    finally:
        for stream in streams:
            if stream.lost is not None:
                # What other parts of the program still write at its exit would fail once more, with a traceback.
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, stream.fileno())
                os.close(nothing)
        sys.stdout, sys.stderr = before


def _streams() -> list[Stream]:
    found = (getattr(getattr(stream, "buffer", None), "raw", None) for stream in (sys.stdout, sys.stderr))
    return [raw for raw in found if isinstance(raw, Stream)]


def _stand_in(number: int, before: TextIO | None, shut: bool) -> TextIO:
    raw = Stream(number, shut or before is None)
    encoding = "utf-8" if before is None else before.encoding
    lines = number == 2 or getattr(before, "line_buffering", False)
    through = getattr(before, "write_through", False)
    # What a terminal's encoding lacks is escaped; an answer must never end in a traceback.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=lines, write_through=through
    )
