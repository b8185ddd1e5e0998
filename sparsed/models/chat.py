"""Messages of a chat: made of texts, checked, and rendered by a tokenizer's chat template."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def messages_of(text: str, system: str | None = None, history: list[Message] | None = None) -> list[Message]:
    """The messages that ask for an answer to `text`: the system prompt, what was said before, and the text.

    system: None leaves it to the chat template, which may have one of its own. history: messages {"role", "content"},
    the user's and the assistant's in turn, the user's first; a first one of role "system" is the system prompt. Raises
    ValueError for what is no history, and for two system prompts.
    """
    earlier = check_messages(history, "the history") if history else []
    first = [{"role": "system", "content": system}] if system is not None else []
    if first and earlier and earlier[0]["role"] == "system":
        raise ValueError("There are two system prompts: one is given, and the history begins with another.")
    turns = earlier[1:] if earlier and earlier[0]["role"] == "system" else earlier
    for number, message in enumerate(turns):
        wanted = ("user", "assistant")[number % 2]
        if message["role"] != wanted:
            raise ValueError(
                f"Message {number + 1 + len(earlier) - len(turns)} of the history has the role {message['role']!r} "
                f"where {wanted!r} is due: after an optional 'system', 'user' and 'assistant' take turns."
            )
    if len(turns) % 2:
        raise ValueError("The history ends with a message of the user's: an answer by the role 'assistant' is due.")
    return [*first, *earlier, {"role": "user", "content": text}]


def check_messages(messages: Any, what: str = "the prompt") -> list[Message]:
    """The messages themselves. Raises ValueError, about `what`, unless each is {"role": text, "content": text}."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{what.capitalize()} must be a list of messages, not {messages!r:.60}.")
    for number, message in enumerate(messages, 1):
        if what == "the prompt" and all(isinstance(one, str) for one in messages):
            raise ValueError("One prompt is a text or a list of messages; several texts go to sparsed.generate_all.")
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError(
                f"Message {number} of {what} must be an object with 'role' and 'content', both text, not "
                f"{message!r:.60}."
            )
        for text in (message["role"], message["content"]):
            check_text(text, f"Message {number} of {what}")
        if others := sorted(map(repr, message.keys() - {"role", "content"})):
            raise ValueError(f"Message {number} of {what} has {others[0]} beside 'role' and 'content', the only keys.")
    return messages


def check_text(text: str, what: str) -> None:
    """Raises ValueError, about `what`, for half a character: a byte of another encoding, half of a pair in JSON."""
    try:
        text.encode()
    except UnicodeError:
        raise ValueError(f"{what} is no text: it holds half a character.") from None


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError for a chat template with an error in its syntax."""
    import jinja2

    try:
        _apply(tokenizer, [{"role": "user", "content": "x"}])
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{_first_line(error)}, in line {error.lineno}") from error
    except Exception:  # whatever else a template does is said when it is asked for
        return


def pieces(tokenizer: PreTrainedTokenizerBase, messages: list[Message], template: bool) -> list[str]:
    """The text that the model sees, cut so that no piece holds a special token from inside a message.

    template: by the tokenizer's chat template, with the header of the answer; otherwise the plain texts, a blank line
    between. Raises ValueError where the template refuses the messages or leaves one out.
    """
    framed = _framed(tokenizer, messages, template)
    names = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    spelled = re.compile("(?=" + "|".join(map(re.escape, names)) + ")") if names else None
    whole = _render(tokenizer, messages, template)
    if spelled is None or not any(spelled.search(message["content"]) for message in messages):
        return [whole]
    around = re.split(_STAND_IN, framed)
    around[1::2] = [_as_rendered(tokenizer, messages, int(number), framed, template) for number in around[1::2]]
    made = [""]
    for number, text in enumerate(around):
        # Odd ones are messages. One character of the special token stays behind, the rest goes on.
        cuts = [match.start() + 1 for match in spelled.finditer(text)] if number % 2 else []
        for start, end in zip([0, *cuts], [*cuts, None]):
            if start:
                made.append("")
            made[-1] += text[start:end]
    return made


def by_template(tokenizer: PreTrainedTokenizerBase, messages: list[Message], header: bool = True) -> str:
    """The messages by the tokenizer's chat template, ending with the header of the answer or, without it, inside the
    last message. Raises ValueError where the template refuses the messages or leaves one out.
    """
    _framed(tokenizer, messages, template=True)
    return _render(tokenizer, messages, template=True, header=header)


_STAND_IN = "\ue000(\\d+)\ue001"


def _stand_in(number: int) -> str:
    return f"\ue000{number}\ue001"


def _framed(tokenizer: PreTrainedTokenizerBase, messages: list[Message], template: bool) -> str:
    """What surrounds the messages, with a stand-in for each where it stands."""
    stand_ins = [{**message, "content": _stand_in(number)} for number, message in enumerate(messages)]
    framed = _render(tokenizer, stand_ins, template)
    for number, message in enumerate(messages):
        if _stand_in(number) not in framed:
            raise ValueError(
                f"The model's chat template leaves out message {number + 1}, of role {message['role']!r}: the model "
                f"would not see it."
            )
    return framed


def _as_rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], number: int, framed: str, template: bool
) -> str:
    """What the template makes of one message's content, which it may strip or shorten: it alone has no stand-in."""
    alone = [{**one, "content": _stand_in(place)} for place, one in enumerate(messages)]
    alone[number] = messages[number]
    text, mark = _render(tokenizer, alone, template), _stand_in(number)
    times, first = framed.count(mark), framed.index(mark)
    size = (len(text) - len(framed)) // times + len(mark)
    made = text[first : first + max(0, size)]
    return made if framed.replace(mark, made) == text else messages[number]["content"]


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], template: bool, header: bool = True
) -> str:
    if not template:
        return "\n\n".join(message["content"] for message in messages)
    import jinja2

    try:
        return _apply(tokenizer, messages, header)
    # A template is a program: it raises on purpose, or fails like one.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"The model's chat template refuses these messages: {_first_line(error)}.") from error


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[Message], header: bool = True) -> str:
    # A hybrid thinker (Qwen3) is asked not to think aloud; other templates do not look at it.
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=header,
        continue_final_message=not header,
        enable_thinking=False,
    )
    assert isinstance(text, str)
    return text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")[:200]
