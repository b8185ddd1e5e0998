"""The edge of every program, from outside: readers that go away, closed streams, full disks, signals."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparsed import trace
from sparsed.__main__ import main
from sparsed.edge import INTERRUPTED, NO_READER, TERMINATED, program

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell, pipes and signals as on POSIX")
# Two lines, then so many that no pipe holds them, in a program without torch.
TALKS = """
import sys
from sparsed.edge import go_on, program
def work():
    if {files}: go_on()
    print("one", flush=True)
    for _ in range(20000): print("a line of some length", file={stream})
    if {files}: open(sys.argv[1], "w").write("done")
sys.exit(program(work))
"""


def shell(line: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """What bash makes of a line in which "$py" is this Python; its pipes end as their first failing part does."""
    environment = {**os.environ, "py": sys.executable, "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, env=environment, capture_output=True, timeout=300, **more
    )


@pytest.mark.parametrize(("stream", "pipe"), [("sys.stdout", "| head -1"), ("sys.stderr", "2>&1 >/dev/null | head -1")])
@pytest.mark.parametrize("files", [False, True])
def test_a_reader_that_goes_away(tmp_path: Path, stream: str, pipe: str, files: bool) -> None:
    """It ends the program as it ends others, or the files that were asked for are made; nobody is told of it."""
    (tmp_path / "talks.py").write_text(TALKS.format(files=files, stream=stream))
    done = shell(f'PYTHONPATH=. "$py" {tmp_path}/talks.py {tmp_path}/file {pipe}')
    assert done.returncode == (0 if files else NO_READER) and done.stderr == b""
    assert (tmp_path / "file").exists() == files


@pytest.mark.parametrize(
    ("redirected", "files", "code", "said"),
    [
        (">&-", False, 1, "error: Standard output cannot be written: it is closed.\n"),
        (">&-", True, 0, ""),
        ("2>&-", False, 0, ""),
        ("<&- >&- 2>&-", False, 1, ""),
        ("<&- >&- 2>&-", True, 0, ""),
        (">/dev/full", False, 1, "error: Standard output cannot be written: No space left on device.\n"),
        (">/dev/full", True, 1, "error: Standard output cannot be written: No space left on device.\n"),
        ("2>/dev/full", False, 0, ""),
    ],
)
def test_closed_and_full_streams(tmp_path: Path, redirected: str, files: bool, code: int, said: str) -> None:
    (tmp_path / "talks.py").write_text(TALKS.format(files=files, stream="sys.stdout"))
    done = shell(f'PYTHONPATH=. "$py" {tmp_path}/talks.py {tmp_path}/file {redirected}')
    assert (done.returncode, done.stderr.decode()) == (code, said)
    assert not files or (tmp_path / "file").read_text() == "done"


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What C code prints would go into it."""
    code = (
        "import os, sys; from sparsed.edge import program\n"
        "program(lambda: print(open(sys.argv[1], 'w').fileno(), file=sys.stderr))"
    )
    done = shell(f'"$py" -c "{code}" {tmp_path}/file <&- >&-')
    assert int(done.stderr.splitlines()[0]) > 2


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("One.\nTwo."), 2, "error: One.\nerror: Two.\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 2, "error: a.json: No such file or directory\n"),
        (PermissionError(13, "Permission denied", "a.json"), 1, "error: a.json: Permission denied\n"),
        (RuntimeError("CUDA error\nadvice"), 1, "error: CUDA error\n"),
        (MemoryError(), 1, "error: MemoryError\n"),
        (KeyboardInterrupt(), INTERRUPTED, "stopped.\n"),
        (KeyboardInterrupt("All is kept."), INTERRUPTED, "stopped. All is kept.\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, "error: Broken pipe\n"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def work() -> None:
        raise error

    assert program(work) == code
    assert capsys.readouterr() == ("", said)


def words(folder: Path, *more: str) -> list[str]:
    """The command that is asked here, without its program."""
    return f"generate --model {folder} --device cpu --steps 4 --gen-length 8 --quiet {' '.join(more)}".split()


def generate(folder: Path, *more: str) -> str:
    return f'"$py" -m sparsed {" ".join(words(folder, *more))}'


def test_the_trace_is_written_though_nobody_reads(tiny_folder: Path, tmp_path: Path) -> None:
    done = shell(generate(tiny_folder, f"--prompt short_context --save-trace {tmp_path}/run.json | head -1"))
    assert done.returncode == 0 and done.stdout.startswith(b"tiny") and b"Traceback" not in done.stderr
    assert len(trace.load(tmp_path / "run.json").lanes["sparsed"].steps) == 4
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--prompt hi | head -1", NO_READER, ""),
        ("--prompt hi --json >/dev/full", 1, "Standard output cannot be written: No space left on device."),
    ],
)
def test_a_bad_stream_is_one_sentence(tiny_folder: Path, arguments: str, code: int, said: str) -> None:
    done = shell(generate(tiny_folder, arguments))
    assert done.returncode == code, done.stderr
    one_sentence(done.stderr.decode(), said)


def one_sentence(error: str, said: str) -> None:
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    assert len(lines) == bool(said) and all(line.startswith("error: ") and said in line for line in lines)


@pytest.mark.parametrize(
    ("stdin", "arguments", "code", "said"),
    [
        (None, "--prompt -", 2, "Standard input is closed: there is no prompt to read."),
        (b"a\xff", "--prompt -", 2, "Standard input is no UTF-8 text: byte 2 fits no character."),
        (b"", "--prompt @/", 2, "The prompt file / cannot be read: Is a directory."),
        (b"", "--prompt @", 2, "--prompt @FILE needs the name of a file."),
        (b"", "--prompt @/dev/zero", 2, "The prompt file /dev/zero has more than 64 MiB: that is no prompt."),
        (b"", "--prompt @/bin/sh", 2, "The prompt file /bin/sh is no UTF-8 text"),
        (b"", "--prompt hi --save-trace /", 2, "--save-trace / cannot be written: this is a folder."),
        (b"", "--prompt hi --save-trace /proc/run.json", 2, "--save-trace /proc/run.json cannot be written: "),
    ],
)
def test_a_bad_place_is_one_sentence(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stdin: bytes | None,
    arguments: str, code: int, said: str,
) -> None:  # fmt: skip
    """None: as Python says that standard input was closed when it started."""
    monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
    assert main(words(tiny_folder, arguments)) == code
    one_sentence(capsys.readouterr().err, said)


def test_an_odd_terminal_is_no_fault(tiny_folder: Path) -> None:
    odd = {"TERM": "no-such-terminal", "COLUMNS": "banana", "LINES": "0", "PYTHONIOENCODING": "ascii:strict"}
    line = generate(tiny_folder, "--prompt hi --gen-length 8")
    done = shell(f"script -qec '{line}' /dev/null", env=odd)
    assert done.returncode == 0 and b"answer: " in done.stdout and b"Traceback" not in done.stdout


def test_a_prompt_keeps_its_bytes(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one line end after the last line."""
    text = "  def f():\r\n\treturn 'ä'\n\n"
    (tmp_path / "a.py").write_bytes(text.encode())
    (tmp_path / "b.py").write_bytes(f"{text}\r\n".encode())
    monkeypatch.setattr(sys, "stdin", (tmp_path / "a.py").open(encoding="utf-8"))
    for asked, kept in (("-", text.removesuffix("\n")), (f"@{tmp_path}/a.py", text.removesuffix("\n")),
                        (f"@{tmp_path}/b.py", text)):  # fmt: skip
        assert main(words(tiny_folder, f"--save-trace {tmp_path}/t.json --prompt {asked}")) == 0
        assert trace.load(tmp_path / "t.json").prompt.text == kept


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)])
def test_a_signal_keeps_what_was_made(tmp_path: Path, number: signal.Signals, code: int) -> None:
    line = [sys.executable, "-m", "sparsed", "generate", "--prompt", "1k", "--steps", "64", "--device", "cpu"]
    program = subprocess.Popen(
        [*line, "--dtype", "float32", "--save-trace", str(tmp_path / "t.json")], cwd=ROOT, stdout=-1, stderr=-1,
        # A shell without job control starts its background jobs deaf to Ctrl-C.
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert program.stdout is not None
    while not program.stdout.readline().startswith("question: "):
        assert program.poll() is None
    time.sleep(1)
    program.send_signal(number)
    out, err = program.communicate(timeout=60)
    assert program.returncode == code and "Traceback" not in err
    made = len(trace.load(tmp_path / "t.json").lanes["sparsed"].steps)
    assert f"stopped after {made} of 64 steps" in out


@pytest.mark.parametrize(
    "module",
    ["sparsed", "sparsed.training", "app.tools.opening", "app.tools.depth_chart", "app.tools.tradeoff",
     "app.tools.deploy"],  # fmt: skip
)
def test_every_program_has_this_edge(module: str) -> None:
    done = shell(f'"$py" -m {module} --help >&-')
    assert (done.returncode, done.stderr) == (1, b"error: Standard output cannot be written: it is closed.\n")


def test_the_versions_in_one_line() -> None:
    for line in ("-m sparsed", "app.py"):
        done = shell(f'"$py" {line} --version')
        assert done.returncode == 0 and done.stdout.startswith(b"sparsed ") and done.stdout.count(b"\n") == 1
        assert b"torch 2" in done.stdout
