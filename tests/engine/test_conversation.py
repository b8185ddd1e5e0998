"""A chat of several turns: on the command line, in a record, and what mini makes of it."""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import sparsed
from sparsed import trace
from sparsed.__main__ import main
from sparsed.questions.score import exact_match
from sparsed.questions.world import World, prompt_pieces

FLAGS = ("--device", "cpu", "--dtype", "float32", "--steps", "6", "--gen-length", "12", "--block-length", "12")
SAMPLER = sparsed.SamplerConfig(6, 12, 12)


@pytest.fixture
def talk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs generate with these bytes on standard input → (exit code, stdout, stderr)."""

    def run(model: Path | str, said: bytes, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
        code = main(["generate", "--model", str(model), *FLAGS, *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_each_turn_has_what_was_said_before_it(talk: Any, tiny_folder: Path) -> None:
    code, out, _ = talk(tiny_folder, b"one\n\n two \r\nthree", "--chat", "--json", "--system", "be brief")
    said = [json.loads(line) for line in out.splitlines()]
    model = sparsed.load(tiny_folder, device="cpu", dtype="float32")
    messages = [{"role": "system", "content": "be brief"}]
    assert code == 0 and len(said) == 3
    for record, text in zip(said, ("one", "two", "three"), strict=True):
        messages.append({"role": "user", "content": text})
        assert record["prompt_tokens"] == model.encode(messages).shape[1]
        assert record["text"] == sparsed.generate(model, messages, sampler=SAMPLER).text[0]
        messages.append({"role": "assistant", "content": record["text"]})


def test_a_first_turn_may_be_a_prompt_and_a_history_goes_before_it(talk: Any, tiny_folder: Path, tmp_path) -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "h.json").write_text(json.dumps(history))
    (tmp_path / "p.txt").write_text("two\nlines\n")
    flags = ("--chat", "--history", str(tmp_path / "h.json"), "--prompt", f"@{tmp_path / 'p.txt'}")
    code, out, _ = talk(tiny_folder, b"more\n", *flags, "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    model = sparsed.load(tiny_folder, device="cpu", dtype="float32")
    messages = [*history, {"role": "user", "content": "two\nlines"}]
    assert code == 0 and first["prompt_tokens"] == model.encode(messages).shape[1]
    messages += [{"role": "assistant", "content": first["text"]}, {"role": "user", "content": "more"}]
    assert second["prompt_tokens"] == model.encode(messages).shape[1]
    # For people: the answers, each with a line about it.
    _, out, err = talk(tiny_folder, b"more\n", *flags)
    assert out.count(" prompt tokens; ") == 2 and second["text"] in out and "you: " not in err


def test_a_built_prompt_may_be_the_first_turn(talk: Any) -> None:
    """Also the one that stands there where nobody says."""
    code, out, _ = talk("mini", b"Who?\n", "--chat", "--prompt", "short_context", "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0 and second["prompt_tokens"] > first["prompt_tokens"] > 200
    [alone] = talk("mini", b"Who?\n", "--chat", "--json")[1].splitlines()
    assert json.loads(alone)["prompt_tokens"] < 50


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt-format", "raw"], "--chat goes by the model's chat template: leave --prompt-format raw out."),
        (["--prompt", "-"], "--chat reads its turns from standard input"),
        (["--save-trace", "x.json"], "--save-trace keeps one run: leave it out with --chat."),
        (["--prompts", "x.txt"], "--prompts asks the prompts of a file: leave --chat out"),
    ],
)
def test_what_leaves_no_conversation_is_refused(talk: Any, tiny_folder: Path, arguments: list[str], said: str) -> None:
    code, out, err = talk(tiny_folder, b"", "--chat", *arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and said in err


def test_a_model_without_a_template_has_no_turns(talk: Any, tiny_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    code, out, err = talk(folder, b"one\n", "--chat")
    assert code == 2 and out == "" and "has no chat template: it answers single prompts, and no further turns." in err


def test_a_record_holds_what_was_said_before(tiny: Any, tmp_path: Path, talk: Any, tiny_folder: Path) -> None:
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    run = sparsed.denoise(tiny, [*history, {"role": "user", "content": "c"}], sampler=SAMPLER)
    run.result()
    for stored, told in ((True, (("user", "a"), ("assistant", "b"))), (False, ())):
        made = trace.record(run, prompt="c", history=history, store_text=stored)
        trace.save(made, tmp_path / "run.json")
        assert trace.load(tmp_path / "run.json").prompt.history == told
    # A record of before there were turns.
    raw = json.loads((tmp_path / "run.json").read_text())
    del raw["prompt"]["history"]
    (tmp_path / "run.json").write_text(json.dumps(raw))
    assert trace.load(tmp_path / "run.json").prompt.history == ()
    # The command's.
    (tmp_path / "h.json").write_text(json.dumps([{"role": "system", "content": "s"}, *history]))
    place = str(tmp_path / "own.json.gz")
    assert talk(tiny_folder, b"", "--history", str(tmp_path / "h.json"), "--prompt", "c", "--save-trace", place)[0] == 0
    prompt = trace.load(place).prompt
    assert (prompt.text, prompt.system, prompt.history) == ("c", "s", (("user", "a"), ("assistant", "b")))


def test_mini_answers_further_questions_about_its_documents() -> None:
    """Its training rows have turns like these: the documents in the first one."""
    mini = sparsed.load("mini", device="cpu", dtype="float32")
    count = lambda pieces: len(mini.tokenizer("".join(pieces), add_special_tokens=False)["input_ids"])  # noqa: E731
    right = asked = 0
    for seed in (0, 1):
        world = World(random.Random(f"turn-{seed}"), held_out=True, rich=True)
        world.fill(count, 330, 0.1)
        messages: list[dict[str, str]] = []
        for kind in ("fact", "two_hop"):
            question = world.ask(kind)
            assert question is not None
            pieces = question.question if messages else prompt_pieces(world.documents, question.question)
            messages.append({"role": "user", "content": "".join(pieces)})
            answer = sparsed.generate(mini, messages, attention="dense").text[0]
            messages.append({"role": "assistant", "content": answer})
            asked, right = asked + 1, right + exact_match(answer, "".join(question.answer))
    assert right == asked == 4
