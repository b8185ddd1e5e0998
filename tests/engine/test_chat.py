"""Prompts: messages of a text, a system prompt and a history; raw text; chat templates that refuse or are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sparsed
from sparsed.models.chat import messages_of

FAMILIES = ("llada", "dream", "qwen3")
USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.fixture
def with_template(folder_of, tmp_path: Path) -> Callable[[str | None], Path]:
    """A checkpoint with this chat template."""

    def make(template: object, family: str = "llada") -> Path:
        folder = Path(shutil.copytree(folder_of(family), tmp_path / family))
        about = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(about | {"chat_template": template}))
        return folder

    return make


def load(folder: Path):
    return sparsed.load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("system", "history", "roles"),
    [
        (None, None, "u"),
        (None, [], "u"),
        ("s", None, "su"),
        ("", None, "su"),
        (None, [USER, ANSWER], "uau"),
        ("s", [USER, ANSWER, USER, ANSWER], "suauau"),
        (None, [SYSTEM], "su"),
        (None, [SYSTEM, USER, ANSWER], "suau"),
    ],
)
def test_messages_of_a_text(system, history, roles: str) -> None:
    kept = json.dumps(history)
    messages = messages_of("the text", system, history)
    assert [message["role"][0] for message in messages] == list(roles)
    assert messages[-1] == {"role": "user", "content": "the text"}
    if system is not None:
        assert messages[0] == {"role": "system", "content": system}
    assert messages[-1 - len(history or []) : -1] == (history or []) and json.dumps(history) == kept


@pytest.mark.parametrize(
    ("system", "history", "said"),
    [
        (None, {"role": "user"}, "The history must be a list of messages, not {'role': 'user'}."),
        (None, "text", "The history must be a list of messages, not 'text'."),
        (None, ["text"], "Message 1 of the history must be an object with 'role' and 'content', both text, not"),
        (None, [USER, {"role": "assistant"}], "Message 2 of the history must be an object with"),
        (None, [{"role": "user", "content": ["x"]}, ANSWER], "Message 1 of the history must be an object with"),
        (None, [USER, {**ANSWER, "tool_calls": []}], "Message 2 of the history has 'tool_calls' beside"),
        (None, [USER], "The history ends with a message of the user's"),
        (None, [ANSWER], "Message 1 of the history has the role 'assistant' where 'user' is due"),
        (None, [USER, USER], "Message 2 of the history has the role 'user' where 'assistant' is due"),
        (None, [USER, ANSWER, SYSTEM], "Message 3 of the history has the role 'system' where 'user' is due"),
        (None, [SYSTEM, ANSWER], "Message 2 of the history has the role 'assistant' where 'user' is due"),
        (None, [{"role": "human", "content": "x"}, ANSWER], "has the role 'human' where 'user' is due"),
        ("s", [SYSTEM, USER, ANSWER], "There are two system prompts"),
    ],
)
def test_what_is_no_history_is_one_sentence(system, history, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        messages_of("text", system, history)
    assert str(caught.value).startswith(said) or said in str(caught.value)
    assert str(caught.value)[-1] == "." and "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_raw_or_by_the_template_as_asked(model_of, family: str) -> None:
    model = model_of(family)
    for text in ("    return x", "\n\n a  \n", "the <|eot_id|> a <|im_end|>  "):
        by_template, raw = model.encode(text), model.encode(text, chat=False)
        assert torch.equal(by_template, model.encode(text, chat=True)) and by_template.shape[1] > raw.shape[1]
        # Every space in its place, and nothing else.
        assert model.tokenizer.decode(raw[0]) == text
    chat = messages_of(" now", "be brief", [USER, ANSWER])
    assert model.tokenizer.decode(model.encode(chat, chat=False)[0]) == "be brief\n\na\n\nb\n\n now"
    rendered = model.tokenizer.decode(model.encode(chat)[0], skip_special_tokens=False)
    assert [rendered.index(part) for part in ("be brief", "now")] == sorted(map(rendered.index, ("be brief", "now")))


def test_raw_text_begins_as_the_tokenizer_begins_every_text(folder_of, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("llada"), tmp_path / "llada"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    begin = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|startoftext|>")
    whole = {"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": whole, "pair": whole,
        "special_tokens": {"<|startoftext|>": {"id": "<|startoftext|>", "ids": [begin], "tokens": ["<|startoftext|>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = load(folder)
    for text in ("  the a", "the <|eot_id|> [CLS]"):
        raw = model.encode(text, chat=False)[0].tolist()
        assert raw[0] == begin and begin not in raw[1:]
        assert model.tokenizer.decode(raw[1:]) == text
    assert model.encode("  the a", chat=False)[0].tolist() == model.tokenizer("  the a")["input_ids"]
    # A template has its own.
    assert model.encode("the a")[0].tolist().count(begin) == 1


def test_without_a_template_it_cannot_be_asked_for(with_template) -> None:
    model = load(with_template(None))
    assert not model.chat
    assert torch.equal(model.encode(" x"), model.encode(" x", chat=False))
    with pytest.raises(ValueError, match="llada has no chat template: its tokenizer comes with none"):
        model.encode(" x", chat=True)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content }}", "Unexpected end of template.*in line 1"),
        ("x\n{{ messages[0].content | banana }}", "No filter named 'banana', in line 2"),
        ("{% if %}{% endif %}", "in line 1"),
        ([{"name": "tool_use", "template": "x"}], "has the chat templates 'tool_use', and no 'default' one"),
    ],
)
def test_a_damaged_template_is_said_when_it_is_loaded(with_template, template, said: str) -> None:
    folder = with_template(template)
    with pytest.raises(sparsed.models.LoadError, match=said) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and str(caught.value)[-1] == "." and "\n" not in str(caught.value)


def test_of_several_templates_the_default_one_is_used(with_template) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "Q{{ messages[0].content }}A"}]
    model = load(with_template(named))
    assert model.tokenizer.decode(model.encode("x")[0]) == "QxA"


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (REFUSING, "refuses these messages: System role not supported."),
        ("{{ messages[0].content }}{{ messages[0].name.first }}", "refuses these messages: .*has no attribute 'name'"),
        ("{{ messages[0].content }}{{ 1 // 0 }}", "refuses these messages: .*zero"),
        ("{{ messages[0].content }}{{ messages[0].content + 1 }}", "refuses these messages: .*str"),
        ("{{ messages[0].content }}{{ ''.__class__.mro() }}", "refuses these messages: .*unsafe"),
        ("{{ messages[1].content }}", r"leaves out message 1, of role 'system': the model would not see it\."),
        ("{{ messages[0].content }}", r"leaves out message 2, of role 'user': the model would not see it\."),
    ],
)
def test_what_a_template_refuses_is_one_sentence(with_template, template: str, said: str) -> None:
    model = load(with_template(template))
    with pytest.raises(ValueError, match=f"^The model's chat template {said}") as caught:
        model.encode(messages_of("x", "be brief"))
    assert str(caught.value)[-1] == "." and "\n" not in str(caught.value)
    assert model.encode(messages_of("x", "be brief"), chat=False).shape[0] == 1
    with pytest.raises(ValueError, match="^The model's chat template "):
        sparsed.denoise(model, messages_of("x", "be brief"))


def test_a_template_may_treat_each_role_in_its_own_way(with_template, checkpoints) -> None:
    """As Qwen3's: users' texts stripped, of an earlier answer what it thought left out. Spelled tokens stay text."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}u:{{ m.content | trim }}{% else %}"
        "a:{{ m.content.split('[gMASK]') | last }}{% endif %};{% endfor %}"
    )
    model = load(with_template(template))
    history = [{"role": "user", "content": " [CLS] a "}, {"role": "assistant", "content": "b[gMASK]  c "}]
    ids = model.encode(messages_of(" d", history=history))[0]
    assert model.tokenizer.decode(ids) == "u:[CLS] a;a:  c ;u:d;"
    assert int(ids.max()) < checkpoints.FIRST_SPECIAL


def test_a_template_may_move_messages_and_repeat_them(with_template, checkpoints) -> None:
    """The system's text inside the user's, as some write it; a special token that is spelled there stays text."""
    template = "{{ messages[1].content }}|{{ messages[0].content }}|{{ messages[1].content }}"
    model = load(with_template(template))
    ids = model.encode(messages_of("the <|eot_id|>", "[CLS] a"))[0]
    assert model.tokenizer.decode(ids) == "the <|eot_id|>|[CLS] a|the <|eot_id|>"
    assert int(ids.max()) < checkpoints.FIRST_SPECIAL
