"""From messages to a prompt's text, from that to token ids, and how many of an answer's were written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsed.models.chat import by_template, check_text

if TYPE_CHECKING:
    from sparsed.models.model import Model


def encode(model: Model, text: str, add_special_tokens: bool) -> list[int]:
    """Token ids of a text in which special tokens may be spelled, as a chat template does; but for the mask token,
    which no prompt holds: where the text spells it, it becomes the tokens of its letters.
    """
    tokenizer: Any = model.tokenizer
    check_text(text, "The text of a request")
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    mask = tokenizer.convert_ids_to_tokens(model.mask_id)
    if model.mask_id not in ids or not isinstance(mask, str):
        return ids
    # Cut behind the first character of each mask token, so that no piece holds a whole one.
    first, *others = text.split(mask)
    pieces = [first + mask[:1], *(mask[1:] + other + mask[:1] for other in others[:-1]), mask[1:] + others[-1]]
    ids = tokenizer.encode(pieces[0], add_special_tokens=add_special_tokens)
    for piece in pieces[1:]:
        ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def render(model: Model, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """A task's messages by the model's chat template, ending with the header of an answer or, without it, inside the
    last message. Raises ValueError where there is no template, or it refuses the messages or leaves one out.
    """
    if not model.chat:
        raise ValueError(f"{model.label} has no chat template: leave --apply_chat_template out.")
    return by_template(model.tokenizer, messages, header=add_generation_prompt)


def written(model: Model, row: list[int]) -> int:
    """Tokens of an answer, its end and masks left out."""
    end = next((place for place, token in enumerate(row) if token in model.end_ids), len(row))
    return sum(token != model.mask_id for token in row[:end])
