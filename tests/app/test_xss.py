"""Hostile text, wherever a visitor, a model, a link or a record can put text: it stays text.

A real browser. Every payload calls `pwn(its number)`, asks for an address with the mark in it, or brings elements and
attributes with the mark; the detector notes all three, and a control shows that it does, with each payload in a place
where that payload is dangerous. On the page nothing of it may happen, and what is shown must be the text itself.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from visitor import cells, come_near, facts, link, listen, open_record, run_to_end, take

from app.figures.shared import LONGEST_WORDS
from app.race.fields import FIELDS
from app.texts import OWN_QUESTION
from sparsed import trace as traces
from sparsed.config import FULL_ATTENTION, SamplerConfig, SparseDConfig

MARK = "xq9z"
_PAGE = base64.b64encode(b"<script>pwn(0)</script>").decode()

# Payloads without white space, each a token of its own: (where it would be dangerous, the text). @ is the call.
# html: as markup. attribute: between the quotes of one. href: as an address. script: inside a string in a script.
# markdown, template: where these are expanded. twice, json, url, nfkc: as markup after one more decoding.
_PAYLOADS = (
    ("html", "<script>@</script>"),
    ("html", '<img/src="xq9z"onerror="@">'),
    ("html", '<svg/onload="@">'),
    ("html", "<svg><script>@</script></svg>"),
    ("html", '<svg><animate/onbegin="@"attributeName="x"dur="1s">'),
    ("html", '<svg><use/href="data:image/svg+xml,xq9z#a"></use>'),
    ("html", '<iframe/srcdoc="<script>@</script>">'),
    ("html", '<iframe/src="javascript:@">'),
    ("html", '<iframe/src="//xq9z.invalid/">'),
    ("html", '<details/open/ontoggle="@">'),
    ("html", '<input/autofocus/onfocus="@">'),
    ("html", '<video><source/onerror="@">'),
    ("html", '<audio/src="xq9z"onerror="@">'),
    ("html", '<marquee/onstart="@">'),
    ("html", '<object/data="javascript:@">'),
    ("html", f'<embed/src="data:text/html;base64,{_PAGE}"id="xq9z">'),
    ("html", '<math><mtext><table><mglyph><style><img/src="xq9z"onerror="@">'),
    ("html", '<math><maction/actiontype="statusline#xq9z"/href="javascript:@">9'),
    ("html", '<a/href="javascript:@">xq9z</a>'),
    ("html", '<a/href="//xq9z.invalid">xq9z</a>'),
    ("html", '<form/action="javascript:@"><button>xq9z'),
    ("html", '<link/rel="stylesheet"href="xq9z.css">'),
    ("html", '<style>@import"xq9z.css";*{background:url(xq9z)}</style>'),
    ("html", '<div/style="background:url(/xq9z)">'),
    ("html", '<p/style="position:fixed;inset:0"id="xq9z">'),
    ("html", '<meta/http-equiv="refresh"content="9;url=/xq9z">'),
    ("html", '<base/href="//xq9z.invalid/">'),
    ("html", '<template><img/src="xq9z"onerror="@"></template>'),
    ("html", '<!--><img/src="xq9z"onerror="@">-->'),
    ("html", '<xq9z-element/onpointerenter="@">'),
    ("html", '<b/id="xq9z">bold</b>'),
    ("html", '</pre></details></textarea></title></style><img/src="xq9z"onerror="@">'),
    ("html", '<IMG/SRC="xq9z"OnError="@"'),
    ("html", '<img/src="xq9z"onerror="&#112;wn(9)">'),
    ("attribute", '"onmouseover="@"xq9z="'),
    ("attribute", '"><img/src="xq9z"onerror="@">'),
    ("attribute", '"autofocus/onfocus="@"tabindex="1"xq9z="'),
    ("href", "javascript:@"),
    ("href", "jAvAsCrIpT:@//"),
    ("href", "javascript://xq9z.invalid/%0A@"),
    ("script", "</script><script>@</script>"),
    ("script", '";@;//'),
    ("script", "<!--<script>\";@;//"),
    ("template", "${@}"),
    ("template", "{{@}}"),
    ("markdown", "[xq9z](javascript:@)"),
    ("markdown", "![xq9z](/xq9z.png)"),
    ("markdown", "<javascript:@>"),
    ("twice", "&lt;img/src=&quot;xq9z&quot;onerror=&quot;@&quot;&gt;"),
    ("twice", "&#60;svg/onload=&#34;@&#34;&#62;"),
    ("json", "\\u003cimg/src=xq9z\\u0020onerror=@\\u003e"),
    ("url", "%3Csvg%2Fonload=%22@%22%3E"),
    ("nfkc", "\uff1cimg/src=\uff02xq9z\uff02onerror=\uff02@\uff02\uff1e"),
    ("html", '\'"></script></style></textarea></title>--><svg/onload="@"xq9z>${@}{{@}}//'),
)
PAYLOADS = [(kind, text.replace("@", f"pwn({n})")) for n, (kind, text) in enumerate(_PAYLOADS)]
TEXTS = [text for _, text in PAYLOADS]
# What plotly's own small markup and its templates understand, and lines that look like a message of gradio's stream.
LINES = [
    '<a href="https://xq9z.invalid">xq9z</a> <span style="font-size:99px">xq9z</span> <br><b>xq9z</b>',
    "%{x} %{customdata} $xq9z$",
    '<img src=xq9z onerror=pwn(90)> <svg onload=pwn(91)> <iframe srcdoc="<script>pwn(92)</script>"></iframe>',
    'data: {"msg": "process_completed", "xq9z": "<img src=xq9z onerror=pwn(93)>"}',
    "%s %(xq9z)s {xq9z} {0} %{fullData.name} &amp;lt; &lt;b id=xq9z&gt;",
]

# Before any script of the page. Attributes for the eye and the ear may hold a text; plotly keeps what it was given in
# one of its own, and the page's script in data-shown.
DETECTOR = """
(() => {
  window.pwn = (n) => (top.pwned ??= []).push(n);
  const marked = /xq9z|pwn\\(/i;
  const free = new Set([
    "aria-label", "aria-valuetext", "title", "placeholder", "value", "data-shown", "data-unformatted",
  ]);
  const hidden = new Set(["script", "style", "iframe", "noscript", "template", "xmp"]);
  window.planted = [];
  // plotly names what its drawings refer to by the page's whole address.
  const rest = (value) => value.replaceAll(location.href.split("#")[0], "");
  const wrong = (one) =>
    marked.test(one.localName) ||
    [...one.attributes].some((a) => marked.test(a.name) || (marked.test(rest(a.value)) && !free.has(a.name))) ||
    (hidden.has(one.localName.toLowerCase()) && one.id !== "sd-value" && marked.test(one.innerHTML + one.textContent));
  const look = (one) => {
    if (one instanceof Element && wrong(one)) window.planted.push(one.outerHTML.slice(0, 160));
  };
  new MutationObserver((records) => {
    for (const record of records) {
      if (record.type === "attributes") look(record.target);
      for (const node of record.addedNodes) {
        look(node);
        if (node instanceof Element) for (const one of node.querySelectorAll("*")) look(one);
      }
    }
  }).observe(document, { subtree: true, childList: true, attributes: true });
})();
"""

# Puts a text where it is dangerous: the control.
SINKS = """
([kind, text]) => {
  const box = document.body.appendChild(document.createElement("div"));
  const markup = (given) => { box.innerHTML = given; };
  const frame = (given) => {
    const inner = document.createElement("iframe");
    inner.srcdoc = given;
    box.append(inner);
  };
  if (kind === "html") { markup(text); frame(`<!doctype html><body>${text}`); }
  if (kind === "attribute") markup(`<a title="${text}">here</a>`);
  if (kind === "href") { box.innerHTML = "<a>here</a>"; box.firstChild.href = text; box.firstChild.click(); }
  if (kind === "script") frame(`<!doctype html><script>const said = "${text}";</` + "script>");
  if (kind === "template") {
    if (text.startsWith("$")) new Function("return `" + text + "`")();
    else text.replace(/{{(.*)}}/, (_, inside) => new Function(inside)());
  }
  if (kind === "markdown") {
    markup(text.replace(/!\\[(.*)\\]\\((.*)\\)/, '<img alt="$1" src="$2">')
      .replace(/\\[(.*)\\]\\((.*)\\)/, '<a href="$2">$1</a>').replace(/^<([^>]*)>$/, '<a href="$1">here</a>'));
  }
  if (kind === "twice") { markup(text); markup(box.textContent); }
  if (kind === "json") markup(JSON.parse(`"${text}"`));
  if (kind === "url") markup(decodeURIComponent(text));
  if (kind === "nfkc") markup(text.normalize("NFKC"));
}
"""


def strange(url: str) -> bool:
    """Is this no address that the page itself asks for?"""
    parts = urlsplit(url)
    if parts.scheme in ("data", "blob", "about"):
        return MARK in url or "html" in url[:20]
    return parts.scheme not in ("http", "file") or parts.hostname not in ("127.0.0.1", None) or MARK in parts.path


class Trap:
    """A browser context that notes what a payload does. requests: addresses that the page has no reason to ask for."""

    def __init__(self, context: Any) -> None:
        self.context, (self.empty,) = context, context.pages
        self.context.add_init_script(DETECTOR)
        self.context.on("page", self._watch)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.pages: list[Any] = []

    def _watch(self, page: Any) -> None:
        self.pages.append(page)
        page.set_default_timeout(120_000)
        page.on("request", lambda sent: self.requests.append(sent.url) if strange(sent.url) else None)
        listen(page, self.problems)

    def open(self, url: str) -> Any:
        page = self.context.new_page()
        page.goto(url)
        return page

    def page(self, server: Any, query: str = "") -> Any:
        """The page of a server, once it has shown its prompt."""
        page = self.open(server.url + query)
        page.wait_for_selector(".sd-facts:not([hidden]), .sd-problem:not([hidden])")
        return page

    def check(self) -> None:
        """Nothing has happened in any page."""
        for page in self.pages:
            assert page.evaluate("[window.pwned ?? [], window.planted]") == [[], []]
        assert self.requests == [] and self.problems == []
        # No window was opened by anything but this class.
        assert [self.empty, *self.pages] == self.context.pages

    def forget(self) -> None:
        """Closes the pages, and what was noted of them."""
        for page in self.context.pages[1:]:
            page.close()
        for noted in (self.pages, self.requests, self.problems):
            noted.clear()


@pytest.fixture(scope="module")
def opened(with_profile: Callable[[], Any]) -> Trap:
    """One for the file: what a context has loaded once comes from its cache."""
    return Trap(with_profile())


@pytest.fixture
def trap(opened: Trap) -> Iterator[Trap]:
    yield opened
    try:
        opened.check()
    finally:
        opened.forget()


@pytest.fixture
def control(opened: Trap) -> Iterator[Trap]:
    """For what does happen."""
    yield opened
    opened.forget()


# ---------------------------------------------------------------- the control


def test_the_detector_fires_for_every_payload_where_it_is_dangerous(control: Trap, fake: Any) -> None:
    assert len(PAYLOADS) >= 30
    page = control.open(f"{fake.url}test/state")
    silent = []
    for number, (kind, text) in enumerate(PAYLOADS):
        control.requests.clear()
        control.problems.clear()
        page.evaluate("() => { window.pwned = []; window.planted = []; document.body.replaceChildren(); }")
        page.evaluate(SINKS, [kind, text])
        if kind == "attribute" and "onmouseover" in text:
            page.hover("a")
        caught = "() => window.pwned.length || window.planted.length"
        for _ in range(40):
            if page.evaluate(caught) or control.requests:
                break
            page.wait_for_timeout(25)
        else:
            silent.append((number, text))
    assert silent == []


def test_most_payloads_really_run_code_where_they_are_dangerous(control: Trap, fake: Any) -> None:
    """The detector's first part, alone: what a payload is there for happens."""
    page = control.open(f"{fake.url}test/state")
    for kind, text in PAYLOADS:
        page.evaluate(SINKS, [kind, text])
    page.wait_for_function("() => new Set(window.pwned).size >= 25")
    assert any(MARK in url for url in control.requests)


# ---------------------------------------------------------------- a visitor's own text


def prompt_text(page: Any) -> str:
    if not page.evaluate("() => document.querySelector('.sd-preview').open"):
        page.click(".sd-preview summary")
    # It is filled in when the browser says that it is open, which is a moment later.
    page.wait_for_function("() => document.querySelector('.sd-prompt-text').textContent")
    return page.evaluate("() => document.querySelector('.sd-prompt-text').textContent")


def answer_of(text: str, length: int) -> list[str]:
    """The cells of the stand-in's answer: the words of the text, then the end."""
    words = text.split()[:length]
    shown = [words[0], *(f" {word}" for word in words[1:])]
    return shown + ([" ∎"] + ["·"] * (length - len(shown) - 1) if len(shown) < length else [])


def tips(page: Any, lane: str, count: int) -> list[str]:
    """What is said of the first cells when they are pointed at, one after the other."""
    return page.evaluate(
        """([lane, count]) => {
            const root = document.querySelector(`[data-lane=${lane}]`);
            return [...root.querySelectorAll(".sd-canvas .sd-cell")].slice(0, count).map((cell) => {
                cell.dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
                return root.querySelector(".sd-tip").textContent;
            });
        }""",
        [lane, count],
    )


FAST = {"kind": "own", "steps": 16, "gen_length": 128, "block_length": 128}


def test_own_text_and_the_answers_tokens_stay_text(trap: Trap, keeping: Any, tmp_path: Path) -> None:
    page = trap.page(keeping, "?" + urlencode({**FAST, "text": "hello", "third": "random"}))
    text = "\n".join([*TEXTS, *LINES])
    page.fill("#sd-text textarea", text)
    facts(page, f"{len(text.split())} prompt")
    assert prompt_text(page) == text
    assert run_to_end(page) == "done"
    expected = answer_of(text, 128)
    assert cells(page, "dense") == expected and cells(page, "sparse") == expected
    assert cells(page, "baseline")[:2] == expected[:2]
    said = tips(page, "sparse", len(TEXTS))
    for cell, tip in zip(expected, said, strict=False):
        assert f"“{cell}”, committed in step " in tip
    # Played again, from the beginning to the end.
    page.wait_for_selector("#sd-replay input[type=range]:visible")
    for place in ("Home", "End"):
        page.focus("#sd-replay input[type=range]")
        page.keyboard.press(place)
    assert cells(page, "sparse") == expected
    assert page.inner_text(".sd-about b") == OWN_QUESTION
    trap.check()
    # And as a file of its own.
    alone = trap.open(take(page, "replay.html", tmp_path).as_uri())
    alone.wait_for_function("n => document.querySelectorAll('[data-lane=sparse] .sd-cell').length === n", arg=128)
    assert cells(alone, "sparse") == expected


def test_a_failed_run_says_nothing_that_came_from_the_text(trap: Trap, fake: Any, fake_engine: ModuleType) -> None:
    page = trap.page(fake, "?" + urlencode({**FAST, "text": "hello"}))
    text = "\n".join([fake_engine.FAIL_WORD, *TEXTS])
    page.fill("#sd-text textarea", text)
    facts(page, f"{len(text.split())} prompt")
    assert run_to_end(page) == "failed"
    assert "press Run again" in page.inner_text(".sd-message")


# ---------------------------------------------------------------- links


def said_of_link(page: Any) -> str:
    """What the page says of its link."""
    page.wait_for_selector("#sd-linked p")
    return page.inner_text("#sd-linked")


def test_a_links_own_text_stays_text(trap: Trap, fake: Any) -> None:
    text = "\n".join([*TEXTS, *LINES])
    page = trap.page(fake, "?" + urlencode({**FAST, "text": text}))
    facts(page, f"{len(text.split())} prompt")
    assert page.input_value("#sd-text textarea") == text
    assert prompt_text(page) == text


@pytest.mark.parametrize("name", [field.name for field in FIELDS if field.kind == "choice"])
def test_a_word_of_a_link_stays_text(trap: Trap, fake: Any, name: str) -> None:
    """A link that cannot be followed says why, and what it says holds the word."""
    word = TEXTS[1]
    page = trap.page(fake, "?" + urlencode({"gen_length": 32, "steps": 8, name: word}))
    said = said_of_link(page)
    assert said.startswith("This link cannot be followed.") and repr(word) in said


def test_the_numbers_of_a_link_stay_text(trap: Trap, fake: Any) -> None:
    numbers = [field.name for field in FIELDS if field.kind in ("whole", "number")]
    page = trap.page(fake, "?" + urlencode({name: TEXTS[n] for n, name in enumerate(numbers)}))
    said = said_of_link(page)
    assert said.count("is no number: it is left out.") == len(numbers)
    assert all(repr(TEXTS[n][:40]) in said for n in range(len(numbers)))


def test_other_parts_of_an_address_stay_out_of_the_page(trap: Trap, fake: Any) -> None:
    others = {"__theme": TEXTS[1], "view": TEXTS[2], TEXTS[31]: TEXTS[31], "__sign": TEXTS[0], "deep_link": TEXTS[1]}
    query = urlencode(others)
    page = trap.page(fake, f"?{query}#{TEXTS[1]}")
    page.wait_for_selector(".sd-facts:not([hidden])")


# ---------------------------------------------------------------- records

# Every text of a record is one of these.
TITLE = f"Who {TEXTS[1]} {TEXTS[0]}?"
FACT = f"{TEXTS[6]} {TEXTS[35]} {TEXTS[19]}"
TOKENS = 48


def short(length: int) -> list[str]:
    return [text for text in [*TEXTS, *LINES] if len(text) <= length]


def hostile_record(fake_engine: ModuleType) -> traces.Trace:
    """A race of three lanes over the stand-in engine; then every text of its record is replaced."""
    engine = fake_engine.FakeEngine(pace=0.0, load_seconds=0.0, keeps=True)
    model = engine.load("mini", lambda _: None)
    sampler = SamplerConfig(
        steps=12, gen_length=TOKENS, block_length=TOKENS, algorithm="low_confidence", temperature=0.0, seed=0,
        top_p=1.0, top_k=0, alg_temp=0.0, eps=1e-3, cfg_scale=0.0,
    )  # fmt: skip
    attention = SparseDConfig(0.2, 0.4, 32)
    lanes = {"dense": FULL_ATTENTION, "sparse": attention, "baseline": replace(attention, method="random")}
    prompt = engine.build_prompt(None, "short_context", "about", 0)
    text = " ".join(TEXTS[:TOKENS]) + " padding" * 200
    runs = {key: engine.denoise(model, text, sampler, one, "gather") for key, one in lanes.items()}
    for run in runs.values():
        for _ in run:
            pass
    made = engine.record(runs, prompt=prompt, devices=dict.fromkeys(runs, 0))
    blocks = -(-(made.prompt.tokens + TOKENS) // 32)
    words = short(48)
    return replace(
        made,
        software={FACT: FACT, "torch": FACT},
        machine={"cpu": FACT, FACT: FACT, "cores": 4},
        model=traces.TraceModel(FACT, FACT, FACT, FACT, FACT),
        prompt=replace(
            made.prompt, text="\n".join([*TEXTS, *LINES]), question=TITLE, gold=FACT, kind=FACT, length=FACT,
            words=tuple(words[n % len(words)] for n in range(blocks)),
        ),
        # With white space inside, which the stand-in's tokens have not.
        vocabulary={
            token: word if token <= 1 else f" {[*TEXTS, *LINES][token % len(TEXTS + LINES)]}"
            for token, word in made.vocabulary.items()
        },
        lanes={
            f"{TEXTS[1]} {key}": replace(
                lane, backend=f"{TEXTS[2]} b", notes=(FACT, TEXTS[31]), text=("\n".join(TEXTS),)
            )
            for key, lane in made.lanes.items()
        },
    )  # fmt: skip


def hovered(page: Any, chart: str) -> str:
    """What the chart says of the cell in its middle when it is pointed at."""
    come_near(page, chart)
    box = page.locator(f"{chart} .nsewdrag").first.bounding_box()
    for share in (0.5, 0.45, 0.55):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])
        page.wait_for_timeout(150)
        said = page.evaluate("c => document.querySelector(`${c} .sd-map-tip`).textContent", chart)
        if said:
            return said
    raise AssertionError("nothing was said")


def test_every_text_of_a_record_stays_text(trap: Trap, fake: Any, fake_engine: ModuleType, tmp_path: Path) -> None:
    record = hostile_record(fake_engine)
    path = tmp_path / "<img src=xq9z onerror=pwn(94)>.json.gz"
    traces.save(record, path)
    page = trap.page(fake)
    open_record(page, path)
    page.wait_for_function("said => document.querySelector('.sd-about b').textContent === said", arg=TITLE)
    page.focus("#sd-replay input[type=range]")
    page.keyboard.press("End")
    lane = next(iter(record.lanes.values()))
    written = {commit.position: commit.token for step in lane.steps for commit in step.committed}
    expected = [record.vocabulary[written[n]].replace("\n", "↵\n") for n in range(TOKENS)]
    assert cells(page, "dense") == expected
    for cell, tip in zip(expected, tips(page, "dense", TOKENS), strict=True):
        assert f"“{cell}”" in tip
    badge = page.text_content(".sd-stage .sd-recorded")
    assert badge == f"Recorded · {FACT}, 4 cores · 2026-11-22 · {FACT}"
    assert page.locator(".sd-stage .sd-notes li").all_text_contents() == [FACT, TEXTS[31]]
    assert page.locator(".sd-backend").first.text_content() == f"{TEXTS[2]} b"
    assert page.text_content(".sd-gold span") == FACT
    assert page.text_content("#sd-looking").strip().startswith(f"A recorded run of {FACT}, on {FACT}, 4 cores, 2026")
    # The first words of the blocks.
    said = hovered(page, "#sd-heatmap")
    quoted = [word if len(word) <= LONGEST_WORDS else f"{word[:LONGEST_WORDS].rstrip()}…" for word in short(48)]
    assert any(f"“{one}”" in said for one in quoted), said
    trap.check()
    # Its files, made anew: each has a name that a header can hold.
    page.get_by_role("tab", name="Take it away").click()
    for name in ("run.json.gz", "replay.html", "race.webp"):
        with page.expect_download() as saved:
            page.click(f"#sd-takeaway a[href$='{name}']")
        assert saved.value.suggested_filename.endswith(name) and saved.value.failure() is None
        if name == "replay.html":
            file = saved.value.path().rename(tmp_path / "replay.html")
    alone = trap.open(file.as_uri())
    alone.wait_for_function("n => document.querySelectorAll('[data-lane=dense] .sd-cell').length === n", arg=TOKENS)
    alone.focus("#sd-replay input[type=range]")
    for key in ("Home", "End"):
        alone.keyboard.press(key)
    assert cells(alone, "dense") == expected
    assert alone.text_content("#sd-record h1, #sd-record h2") == TITLE
    assert FACT in alone.text_content("#sd-record")


DAMAGED = (
    "not even JSON {t}",
    '{{"{t}": 1}}',
    '{{"format": "sparsed-trace", "version": "{t}"}}',
    '{{"format": "sparsed-trace", "version": 1, "created": "{t}"}}',
    '{{"format": "sparsed-trace", "version": 1, "{t}": "{t}"}}',
)


def test_what_is_said_of_a_damaged_record_stays_text(trap: Trap, fake: Any, tmp_path: Path) -> None:
    page = trap.page(fake)
    for number, content in enumerate(DAMAGED):
        path = tmp_path / f"<svg onload=pwn(95)>{number}.json"
        path.write_text(content.format(t="<img src=xq9z onerror=pwn(96)>"))
        open_record(page, path)
        # It begins with the file's name.
        page.wait_for_selector(f"#sd-upload-said p:has-text('{number}.json is ')")
        assert page.locator("#sd-upload-said p > *").count() == 0
        trap.check()


def test_the_name_of_a_download_is_plain(fake_engine: ModuleType) -> None:
    from app.finished.files import download
    from app.finished.run import Kept

    record = hostile_record(fake_engine)
    for name in ('a"b', "a\r\nSet-Cookie: x=1", "模型", "\ud800", "../../etc/passwd", "a;b", "x" * 300):
        hostile = replace(record, model=replace(record.model, name=name), prompt=replace(record.prompt, length=name))
        saved = download(Kept(hostile, False), "run.json.gz", lambda text, gold: (True, "")).name
        assert saved.startswith("sparsed-") and saved.endswith("run.json.gz") and len(saved) < 200
        assert all(letter.isascii() and (letter.isalnum() or letter in "-._") for letter in saved), saved


# ---------------------------------------------------------------- letters that change what is around them

# Overrides, embeddings, isolates and marks, open and closed, alone and within words; letters from right to left.
TURNING = [
    "\u202eabc", "\u202ba", "\u202dx", "\u2067b", "\u2069\u202ec", "\u2069\u2069\u202ed",
    "\u202c\u202ee", "\u200f(f)", "\u061cg", "\u2066\u202eh", "\u2068\u202ei", "שלום", "(مرحبا)",
    "\u202e", "[\u202ej", "\u202e\u2067\u202ek", "plain",
]  # fmt: skip
# Nothing to see, or much above and below: joiners, variation selectors, marks, tags, blanks of other names.
THIN = [
    "a\u200bb", "\u200b", "\ufeffc", "d\u2060e", "f\u200dg", "h\u00adi", "\u034fj", "k" + "\u0301" * 30,
    "l\ufe0f", "\u3164", "\u2800m", "n\U000e0041\U000e0042", "o\u180ep", "\u115fq",
    "\ufff9r\ufffas\ufffb", "👩\u200d👩\u200d👧", "🇩🇪", "\u00e9", "e\u0301",
]  # fmt: skip

# Letters of `words` in the element, from the first one's left edge on: false where one stands before the one before.
IN_ORDER = """
([selector, words]) => [...document.querySelectorAll(selector)].every((element) => {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const start = node.data.lastIndexOf(words);
    if (start < 0) continue;
    const range = document.createRange();
    let [left, top] = [-Infinity, -Infinity];
    for (let i = start; i < start + words.length; i += 1) {
      range.setStart(node, i);
      range.setEnd(node, i + 1);
      const box = range.getBoundingClientRect();
      if (!box.width || words[i] === " ") continue;
      if (box.top > top + 4) [left, top] = [-Infinity, box.top];
      if (box.left <= left) return false;
      left = box.left;
    }
    return true;
  }
  return null;
})
"""
CELLS_IN_ORDER = """
(lane) => {
  let [left, top] = [-Infinity, -Infinity];
  return [...document.querySelectorAll(`[data-lane=${lane}] .sd-canvas .sd-cell`)].flatMap((cell, index) => {
    const box = cell.getBoundingClientRect();
    if (!box.width || box.height > 40) return [];
    if (box.top > top + 4) left = -Infinity;
    const wrong = box.left < left;
    [left, top] = [box.left, box.top];
    return wrong ? [index] : [];
  });
}
"""


def test_the_measure_of_order_sees_words_that_are_turned(trap: Trap, fake: Any) -> None:
    page = trap.open(f"{fake.url}test/state")
    page.evaluate("() => { document.body.innerHTML = '<p>plain words</p><p>one \u202e two words</p>'; }")
    assert page.evaluate(IN_ORDER, ["p:first-child", "plain words"])
    assert not page.evaluate(IN_ORDER, ["p:last-child", "two words"])
    inside = "<span class=sd-canvas><span class=sd-cell>\u202eab</span><span class=sd-cell>cd</span></span>"
    page.evaluate("(html) => { document.body.innerHTML = html; }", f"<p data-lane=x>{inside}</p>")
    assert page.evaluate(CELLS_IN_ORDER, "x") == [1]


def test_turning_letters_turn_nothing_but_themselves(trap: Trap, keeping: Any) -> None:
    words = [word for pair in zip(TURNING, THIN, strict=False) for word in pair]
    text = " ".join(words)
    page = trap.page(keeping, "?" + urlencode({**FAST, "text": "hello"}))
    page.fill("#sd-text textarea", text)
    facts(page, f"{len(text.split())} prompt")
    assert prompt_text(page) == text
    assert run_to_end(page) == "done"
    assert cells(page, "dense") == answer_of(text, 128)
    for lane in ("dense", "sparse"):
        assert page.evaluate(CELLS_IN_ORDER, lane) == []
    box = page.locator("[data-lane=sparse] .sd-canvas .sd-cell")
    for number in range(len(words)):
        box.nth(number).dispatch_event("pointermove")
        said = page.text_content("[data-lane=sparse] .sd-tip")
        assert said.startswith(f"Token {number + 1}: “") and ", committed in step " in said
        for own in (f"Token {number + 1}", ", committed in step "):
            assert page.evaluate(IN_ORDER, ["[data-lane=sparse] .sd-tip", own]), (own, ascii(said))


def test_turning_letters_of_a_record_turn_nothing_but_themselves(
    trap: Trap, fake: Any, fake_engine: ModuleType, tmp_path: Path
) -> None:
    fact = "\u202eabc\u2067"
    record = hostile_record(fake_engine)
    record = replace(
        record,
        machine={"cpu": fact, "cores": 4},
        model=replace(record.model, name=fact, label=fact),
        prompt=replace(record.prompt, question=f"Who is {fact}"),
        lanes={name: replace(lane, backend=fact, notes=(fact,)) for name, lane in record.lanes.items()},
    )
    path = tmp_path / "turned.json.gz"
    traces.save(record, path)
    page = trap.page(fake)
    open_record(page, path)
    page.wait_for_function("() => document.querySelector('.sd-about b').textContent.startsWith('Who is')")
    for place, own in (
        (".sd-stage .sd-recorded", "2026-11-22"), (".sd-stage .sd-recorded", "Recorded"),
        ("#sd-looking", "prompt tokens"), ("#sd-looking", "2026-11-22"), (".sd-about", "These lanes answer: "),
    ):  # fmt: skip
        assert page.evaluate(IN_ORDER, [place, own]), (place, own)


# ---------------------------------------------------------------- every kind of character


def characters() -> str:
    """Of every plane: letters, unassigned and private ones, noncharacters; controls that are no white space."""
    planes = [chr(0x10000 * plane + low) for plane in range(17) for low in (0x61, 0x1234, 0xFDD0, 0xFFFE, 0xFFFF)]
    controls = [chr(code) for code in range(1, 160) if unicodedata.category(chr(code)) == "Cc"]
    controls = [one for one in controls if not one.isspace()]
    return " ".join([*planes, *controls, "\u2028x", "\u2029y"])


def test_every_plane_and_every_control_is_shown_as_it_is(trap: Trap, keeping: Any) -> None:
    text = " ".join(characters().split())
    page = trap.page(keeping, "?" + urlencode({**FAST, "gen_length": 256, "block_length": 256, "text": "hello"}))
    page.fill("#sd-text textarea", text)
    facts(page, f"{len(text.split())} prompt")
    assert prompt_text(page) == text
    assert run_to_end(page) == "done"
    assert cells(page, "sparse") == answer_of(text, 256)
    other = trap.page(keeping, link(page).removeprefix(keeping.url))
    facts(other, f"{len(text.split())} prompt")
    assert prompt_text(other) == text


@pytest.mark.parametrize("code", ["d800", "dfff", "0000"])
def test_what_is_no_character_is_refused_or_replaced(trap: Trap, real: Any, code: str) -> None:
    """Half of a surrogate pair, which no encoding can write, and NUL, which is a character like any other."""
    page = trap.page(real, "?" + urlencode({"kind": "own", "steps": 8, "gen_length": 16, "text": "hello there"}))
    page.wait_for_selector("#sd-text textarea")
    page.wait_for_selector(".sd-preview:not([hidden])")
    page.click(".sd-preview summary")
    shown = "document.querySelector('.sd-prompt-text').textContent"
    page.wait_for_function(f"() => {shown} === 'hello there'")
    page.evaluate(
        """(code) => {
            const box = document.querySelector("#sd-text textarea");
            box.value = `hello ${String.fromCharCode(parseInt(code, 16))} there you`;
            box.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        code,
    )
    page.wait_for_function(f"() => !document.querySelector('.sd-problem').hidden || {shown}.endsWith('you')")
    said = page.text_content(".sd-problem") if page.is_visible(".sd-problem") else ""
    assert said == "" or said.endswith("."), said
    assert run_to_end(page) == ("refused" if said else "done")
    if not said:
        expected = "\0" if code == "0000" else "\ufffd"
        assert prompt_text(page) == f"hello {expected} there you"
