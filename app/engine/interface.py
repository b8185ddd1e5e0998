"""What the page asks of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from app.engine.cost import Shape, Speed
from app.engine.fewer_bits import without_bits
from app.lanes import LaneSpec
from sparsed.config import AttentionConfig, Phase, ResolvedCache, SamplerConfig
from sparsed.models.catalogue import CATALOGUE, ModelSpec
from sparsed.models.chat import Message
from sparsed.models.hub import HUB_ID
from sparsed.runs import RunRecord
from sparsed.trace.types import Trace

if TYPE_CHECKING:
    from sparsed.attention.pattern import Pattern

# How far loading is; str() of what comes is a short text: "downloading: 3.2 of 16.0 GB, file 2 of 6".
Listener = Callable[[Any], None]
# A prompt as a run takes it: the user's message, or all messages.
Given = str | list[Message]


def check_name(name: str) -> None:
    """Raises ValueError for what can be no model: neither in the catalogue, nor a Hub id, nor a model's folder; nor one
    of these in fewer bits.
    """
    name = without_bits(name)
    if any(name in (spec.name, spec.source) for spec in CATALOGUE) or HUB_ID.fullmatch(name):
        return
    if not name.strip() or not (Path(name) / "config.json").is_file():
        listed = ", ".join(spec.name for spec in CATALOGUE)
        raise ValueError(f"The model {name[:80]!r} is none of {listed}, no Hub id (owner/name) and no model's folder.")


class Row(Protocol):
    """Values by position."""

    def tolist(self) -> list[Any]: ...


class Rows(Protocol):
    """Values by batch row and position: a tensor, or what is like one."""

    def __getitem__(self, row: int, /) -> Row: ...


class StepLike(Protocol):
    """One denoising step, as `sparsed.Step`."""

    @property
    def index(self) -> int:
        """Counted from 0."""

    @property
    def total(self) -> int:
        """Steps of the whole run, at most."""

    @property
    def phase(self) -> Phase:
        """Full attention, the step that also selects, or sparse."""

    @property
    def rows(self) -> int:
        """Positions of the sequence that were computed."""

    @property
    def length(self) -> int:
        """Positions of the sequence that were there: all of them where the canvas does not grow."""

    @property
    def tokens(self) -> Rows:
        """Token ids [batch, generation], masks included."""

    @property
    def committed(self) -> Rows:
        """Bool, same shape: the positions unmasked in this step."""

    @property
    def confidence(self) -> Rows:
        """Of the tokens committed in this step; NaN elsewhere."""

    @property
    def seconds(self) -> float:
        """Device time of this step alone."""


class ModelLike(Protocol):
    """A loaded model, as `sparsed.Model`: what a page reads of it. The rest is its engine's business."""

    @property
    def name(self) -> str: ...

    @property
    def chat(self) -> bool:
        """It has a chat template."""

    @property
    def end_ids(self) -> Sequence[int]:
        """Every token that ends an answer."""

    @property
    def defaults(self) -> SamplerConfig:
        """The sampler's settings."""

    @property
    def max_positions(self) -> int:
        """Positions seen in training, in tokens."""


class PromptLike(Protocol):
    """A prompt with a known answer, as `sparsed.questions.build.Prompt`."""

    @property
    def text(self) -> str: ...

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def others(self) -> Sequence[str]:
        """What is right as well."""

    @property
    def needed(self) -> Sequence[tuple[int, int]]:
        """Where the documents that the question needs stand: first character of the text, one past the last."""

    @property
    def tokens(self) -> int:
        """Of the whole prompt, the chat template included."""


class InfoLike(Protocol):
    """What a run is, as `sparsed.denoising.info.RunInfo`."""

    def record(self) -> RunRecord:
        """All of it as plain values."""


class RunLike(Protocol):
    """A denoising run, as `sparsed`'s Run: an iterator of steps that can be closed."""

    @property
    def model(self) -> ModelLike: ...

    @property
    def total(self) -> int:
        """Steps of the whole run, at most."""

    @property
    def switch_step(self) -> int | None:
        """The first sparse step, counted from 0; None if there is none."""

    @property
    def backend(self) -> str:
        """What runs its attention."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences a user should see; they may become more."""

    @property
    def info(self) -> InfoLike:
        """What it is, as it was resolved, and what it has made so far."""

    @property
    def steps(self) -> Sequence[StepLike]:
        """Those made so far."""

    @property
    def pattern(self) -> Pattern | None:
        """None until the select step was made."""

    def __next__(self) -> StepLike: ...

    def close(self) -> None:
        """No step is made any more. Any number of times."""


M = TypeVar("M", bound=ModelLike)


class Engine(Protocol[M]):
    """What a page needs: models, prompts with known answers, and runs."""

    # Races that its device takes at the same time.
    at_once: int

    def models(self) -> Mapping[str, ModelSpec]:
        """What `load` takes → a row of the list. `bundled`: nothing has to be downloaded. parameters: 0 if unknown.
        """

    def admit(self, name: str) -> None:
        """Takes a model into the list that was not in it: a Hub id or a folder. Raises ValueError where that is no
        model's name, or only listed models may be loaded.
        """

    def kinds(self) -> Mapping[str, str]:
        """Question kind → label."""

    def lengths(self) -> Mapping[str, int]:
        """Prompt length name → tokens."""

    def weights(self, name: str) -> int:
        """Bytes of the model's weights in the smallest dtype that the device here takes; 0 where unknown."""

    def known_shape(self, name: str) -> Shape | None:
        """The sizes of a model before it is loaded; None where they are not known."""

    def memory(self, model: M | None = None) -> int | None:
        """Bytes free on the model's device, or on the one that a new model would get; None where unknown."""

    def fetch(self, name: str, progress: Listener) -> None:
        """Brings the model's files to this machine; may take an hour. Raises ValueError or OSError."""

    def load(self, name: str, progress: Listener) -> M:
        """The model; takes seconds once its files are here. Raises ValueError, OSError or RuntimeError."""

    def copies(self, model: M) -> Sequence[M]:
        """The model, and the same on other devices, where lanes can run at the same time: at most one for each lane.
        They are freed with the model.
        """

    def shape(self, model: M) -> Shape:
        """The sizes that decide what a run costs."""

    def speed(self, model: M) -> Speed | None:
        """What is known of its speed without measuring it; None where it can be measured."""

    def place(self, model: M) -> str:
        """Where the model runs, for people: "CPU · float32"."""

    def backend(self, model: M) -> str:
        """What runs the sparse lane here; "auto" where that depends on the run."""

    def build_prompt(self, model: M, length: str, kind: str, seed: int, chat: bool | None = None) -> PromptLike:
        """chat: as for `denoise`. Raises ValueError where none can be made."""

    def count(self, model: M, prompt: Given, chat: bool | None = None) -> int:
        """Tokens of a prompt as the model sees it. Raises ValueError as `denoise` does."""

    def verdict(self, text: str, gold: str) -> tuple[bool, str]:
        """Is the answer right, and that in a few words."""

    def denoise(
        self,
        model: M,
        prompt: Given,
        sampler: SamplerConfig,
        attention: AttentionConfig,
        backend: str,
        probe_steps: Sequence[int] = (),
        chat: bool | None = None,
        cache: ResolvedCache | None = None,
    ) -> RunLike:
        """A run. probe_steps: select afresh there, for comparison. chat: the prompt goes through the model's chat
        template (None: where there is one). cache: which rows a step computes (None: all). Raises ValueError for what
        cannot be run.
        """

    def lend(
        self,
        model: M,
        prompt: Given,
        sampler: SamplerConfig,
        lanes: Sequence[LaneSpec],
        backend: str,
        first: int,
        seconds: float,
        chat: bool | None = None,
    ) -> dict[str, RunLike] | None:
        """The runs of a race by lane, on a device that has to be borrowed for it; None where the device is always here
        and `denoise` makes the runs. Waits for the device, which is given back when the runs are closed.

        first: see `app.race.race.Race`. seconds: what the race is expected to take. Raises ValueError where nothing
        is lent.
        """

    def record(
        self,
        runs: Mapping[str, RunLike],
        *,
        prompt: PromptLike | str,
        devices: Mapping[str, int],
        system: str = "",
        chat: bool | None = None,
        history: Sequence[Message] = (),
    ) -> Trace | None:
        """What runs by lane did, each of one step or more; None where nothing is recorded. prompt: what `build_prompt`
        made, or a visitor's own text. devices: the number of the one that each lane had. system: the system prompt
        before it. chat: as for `denoise`. history: what was said before it.
        """

    def decode_tokens(self, model: M, tokens: Sequence[int]) -> str:
        """The text of some tokens as it stands in the answer, spaces kept."""

    def read_answer(self, model: M, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
        """The answer's text, up to the first end token or stop string."""
