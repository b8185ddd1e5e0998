"""python -m sparsed generate --prompts: the prompts of a file, in order, kept, and gone on with."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsed
from sparsed.__main__ import main
from sparsed.denoising.forward import LocalForward
from sparsed.generation.prompts_file import read_prompts

FLAGS = ("--device", "cpu", "--dtype", "float32", "--steps", "6", "--gen-length", "12", "--block-length", "12")
SAMPLER = sparsed.SamplerConfig(6, 12, 12)
TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


@pytest.fixture
def tell(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command on the tiny model → (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["generate", "--model", str(tiny_folder), *FLAGS, *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Lines 1, 2, 4, 5 and 6: unlike in length but for the first and the last."""
    objects = [
        {"prompt": "abc", "id": "first"},
        {"messages": TURNS, "id": 7, "answer": "x"},
        None,
        {"prompt": "a much longer text"},
        {"prompt": "Ünï"},
        {"prompt": "xyz"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join("" if one is None else json.dumps(one) for one in objects) + "\n", encoding="utf-8")
    return file


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_answers_are_those_of_each_prompt_in_the_order_of_the_lines(tell: Any, tiny_folder: Path, prompts) -> None:
    code, out, err = tell("--prompts", prompts, "--json")
    found = rows(out)
    assert code == 0 and [one["line"] for one in found] == [1, 2, 4, 5, 6]
    assert [one.get("id") for one in found] == ["first", 7, None, None, None]
    assert f"note: Fields of {prompts} that are not read: 'answer'." in err
    model = sparsed.load(tiny_folder, device="cpu", dtype="float32")
    asked = ["abc", TURNS, "a much longer text", "Ünï", "xyz"]
    for one, prompt in zip(found, asked, strict=True):
        alone = sparsed.generate(model, prompt, sampler=SAMPLER)
        assert (one["text"], one["ended"]) == (alone.text[0], alone.ended[0])
        assert one["prompt_tokens"] == model.encode(prompt).shape[1] and one["phases"] == alone.info.phases
        assert one["prompt_format"] == "chat" and one["model"]["name"] == model.name and one["seconds"] > 0
    assert [one["batch"] for one in found] == [2, 1, 1, 1, 2]
    # One by one.
    alone = rows(tell("--prompts", prompts, "--json", "--batch-tokens", 0)[1])
    assert {one["batch"] for one in alone} == {1}
    assert [one["text"] for one in alone] == [one["text"] for one in found]


def test_a_text_file_has_a_prompt_on_each_line(tell: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfabc\r\n\r\n  two words \n")
    lines = read_prompts(str(tmp_path / "prompts.txt"), "be brief").lines
    assert [(line.number, [one["content"] for one in line.messages]) for line in lines] == [
        (1, ["be brief", "abc"]),
        (3, ["be brief", "  two words "]),
    ]
    code, out, _ = tell("--prompts", tmp_path / "prompts.txt")
    assert code == 0 and out.splitlines()[0].startswith("1: ") and "\n3: " in out and "\nanswers: 2 in " in out
    raw = rows(tell("--prompts", tmp_path / "prompts.txt", "--prompt-format", "raw", "--json")[1])
    assert [one["prompt_tokens"] for one in raw] == [3, 12] and raw[0]["prompt_format"] == "raw"


def test_what_a_folder_holds_is_not_made_again(tell: Any, prompts: Path, tmp_path: Path, monkeypatch) -> None:
    """Stopped within the second batch, as Ctrl-C does it; the same command goes on."""
    whole = rows(tell("--prompts", prompts, "--json")[1])
    folder = tmp_path / "kept"
    batches: list[int] = []
    real = LocalForward.logits

    def counted(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        batches.append(len(ids))
        if len(batches) == 9:
            signal.raise_signal(signal.SIGTERM)
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", counted)
    code, out, err = tell("--prompts", prompts, "--out", folder)
    assert code == 143 and batches[:6] == [2] * 6 and "stopped after 2 of 5 answers" in out
    assert f"What {folder} holds stays; the same command goes on from there." in err
    assert [one["line"] for one in rows((folder / "answers.jsonl").read_text("utf-8"))] == [1, 6]
    batches.extend([0] * 9)
    code, out, _ = tell("--prompts", prompts, "--out", folder)
    assert code == 0 and batches[18:] == [1] * 18 and "answers: 5 (2 of them were there before) in " in out
    kept = rows((folder / "answers.jsonl").read_text("utf-8"))
    for one, two in zip(kept, whole, strict=True):
        assert {**one, "seconds": 0, "notes": []} == {**two, "seconds": 0, "notes": []}
    # All there: nothing is run, and all is told.
    before = len(batches)
    assert rows(tell("--prompts", prompts, "--out", folder, "--json")[1]) == kept and len(batches) == before
    # Of other settings, or other prompts, the folder is another's.
    code, _, err = tell("--prompts", prompts, "--out", folder, "--skip", "0.5")
    assert code == 2 and "belongs to another plan (attention.skip is null there, 0.5 here)" in err
    prompts.write_text('{"prompt": "abc"}\n', encoding="utf-8")
    code, _, err = tell("--prompts", prompts, "--out", folder)
    assert code == 2 and "belongs to another plan (prompts is" in err and len(batches) == before


@pytest.mark.parametrize(("error", "others"), [(MemoryError(), [1, 4, 5, 6]), (RuntimeError("lost"), [1, 6])])
def test_a_prompt_that_fails_costs_no_answer_that_is_there(tell, prompts, tmp_path, monkeypatch, error, others) -> None:
    """Line 2, asked second; what is too much for the memory leaves the others to be asked, as another call would."""
    whole = {one["line"]: one["text"] for one in rows(tell("--prompts", prompts, "--json")[1])}
    real, lengths = LocalForward.logits, list[int]()

    def failing(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        lengths.append(ids.shape[1])
        if [ids.shape[1]] == list(dict.fromkeys(lengths))[1:2]:
            raise error
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", failing)
    for flags in ((), ("--out", tmp_path / "kept")):
        lengths.clear()
        code, out, err = tell("--prompts", prompts, "--json", *flags)
        said = f"Line 2 of {prompts}: There is too little memory for one" if isinstance(error, MemoryError) else "lost"
        assert code == 1 and f"error: {said}" in err
        assert {one["line"]: one["text"] for one in rows(out)} == {line: whole[line] for line in others}
    assert [one["line"] for one in rows((tmp_path / "kept" / "answers.jsonl").read_text("utf-8"))] == others


def test_without_a_folder_a_stop_prints_what_there_is(tell: Any, prompts: Path, monkeypatch) -> None:
    made: list[int] = []
    real = LocalForward.logits

    def counted(self: LocalForward, ids: torch.Tensor, pass_: Any) -> torch.Tensor:
        made.append(len(ids))
        if len(made) == 9:
            raise KeyboardInterrupt
        return real(self, ids, pass_)

    monkeypatch.setattr(LocalForward, "logits", counted)
    code, out, _ = tell("--prompts", prompts, "--json")
    assert code == 130 and [one["line"] for one in rows(out)] == [1, 6]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"prompt": "a"}', "{"], "Line 2 of FILE: it is no JSON."),
        (["5", "[]", '{"prompt": "a"}', "x"], "Line 1 of FILE: it must be a JSON object with 'prompt' or 'messages', "
            "not 5. (Lines that are wrong too: 2, 4.)"),
        (['{"id": 3}'], "Line 1 of FILE: it has neither 'prompt' nor 'messages'."),
        (['{"prompt": "a", "messages": []}'], "Line 1 of FILE: it has both 'prompt' and 'messages'."),
        (['{"prompt": 5}'], "Line 1 of FILE: its 'prompt' must be a text that is not empty, not 5."),
        (['{"prompt": "  "}'], "Line 1 of FILE: its 'prompt' must be a text that is not empty, not '  '."),
        (['{"prompt": "a", "id": [1]}'], "Line 1 of FILE: its 'id' must be a text or a whole number, not [1]."),
        (['{"prompt": "\\ud800"}'], "Line 1 of FILE: Message 1 of the prompt is no text: it holds half a character."),
        (['{"messages": "a"}'], "Line 1 of FILE: Its messages must be a list of messages, not 'a'."),
        ([json.dumps({"messages": TURNS[:2]})], "Line 1 of FILE: its last message must be the user's, not of the role "
            "'assistant'."),
        ([json.dumps({"messages": TURNS[1:]})], "Line 1 of FILE: Message 1 of the history has the role 'assistant' "
            "where 'user' is due: after an optional 'system', 'user' and 'assistant' take turns."),
        ([json.dumps({"messages": [{"role": "user", "content": "x", "name": "y"}]})], "Line 1 of FILE: Message 1 of "
            "its messages has 'name' beside 'role' and 'content', the only keys."),
        (["", "  "], "FILE holds no prompt: every line is empty."),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_in_one_sentence(tell: Any, tmp_path: Path, lines: list[str], said: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    code, out, err = tell("--prompts", file)
    assert (code, out) == (2, "") and err == f"error: {said}\n".replace("FILE", str(file))


def test_a_line_that_is_no_text_is_named(tell: Any, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"abc\nd\xff\n")
    code, _, err = tell("--prompts", file := tmp_path / "p.txt")
    assert code == 2 and err == f"error: Line 2 of {file}: it is no UTF-8 text: byte 2 fits no character.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompts", "p.csv"], "--prompts reads .txt, a prompt on each line, and .jsonl, a JSON object on each, not"),
        (["--prompts", ""], "--prompts needs the name of a file."),
        (["--prompts", "nowhere.txt"], "The prompts file nowhere.txt cannot be read: No such file or directory."),
        (["--prompts", "p.txt", "--prompt", "x"], "--prompts asks the prompts of a file: leave --prompt out"),
        (["--prompts", "p.txt", "--save-trace", "x"], "leave --save-trace out"),
        (["--prompts", "p.txt", "--batch-tokens", "-1"], "--batch-tokens must be 0 or above, not -1."),
    ],
)
def test_what_does_not_go_together_is_refused(tell: Any, arguments: list[str], said: str) -> None:
    code, out, err = tell(*arguments)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_options_of_files_without_one_are_said_to_have_no_effect(tell: Any) -> None:
    _, _, err = tell("--prompt", "x", "--batch-tokens", "5")
    assert "--batch-tokens without effect: it belongs to --prompts FILE." in err


def test_runs_that_go_one_by_one_anyway_say_so(tell: Any, prompts: Path) -> None:
    _, out, err = tell("--prompts", prompts, "--temperature", "1", "--batch-tokens", "5000", "--json")
    assert "note: --batch-tokens without effect" in err and {one["batch"] for one in rows(out)} == {1}
