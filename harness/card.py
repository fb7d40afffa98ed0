"""The model card: README.md beside the weights of every checkpoint, which says what the model is and how it was made.

Its front matter is what the Hub reads of a model. All that stands in it follows from the settings, the held-out
evaluations and the step: a run that was resumed writes the same card as one that never stopped. Names of files stand
without their folders, and texts of flags and data are quoted, so that none of them becomes markup.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.command import flag_name, shown
from harness.config import METHODS, Config
from policy.lora import is_adapter
from policy.model import looks_like_path
from rollout import turns_of, without_turns
from sources.formats import DATA_FILES

NAME = "README.md"
# What says where, how long, how often and with what memory: nothing of the model. The judge's address is nobody else's.
NOT_OF_THE_MODEL = (
    "model", "data", "eval_data", "map", "method", "out", "resume", "force", "device", "trust_remote_code", "skip_bad",
    "steps", "save_every", "keep", "max_bad_steps", "eval_every", "eval_at_start", "token_budget", "checkpointing",
    "compile", "judge_url", "judge_timeout", "judge_calls", "judge_cache", "track", "recipe", "merge",
    "prompt_contents",
)  # fmt: skip
LICENCE_FIELDS = ("license", "license_name", "license_link")  # as the Hub names them
PAPER = "https://arxiv.org/abs/2512.06337"
LIMITS = (
    "It was trained on one kind of question, by what its answers earned. Nothing else was checked: what its base model "
    "gets wrong, it may get wrong too, and its reasoning may be wrong where its answer is right."
)
PLACE = "{problem}"  # where the problem stands in a prompt


@dataclass(frozen=True)
class Saved:
    """What a folder holds that the card is written for."""

    has_template: bool = False  # prompts went through a chat template
    is_adapter: bool = False  # it is no model without its base

    @classmethod
    def of(cls, folder: Path) -> Saved:
        return cls((folder / "chat_template.jinja").exists(), is_adapter(str(folder)))


def model_card(config: Config, evaluations: list[dict[str, Any]], step: int, saved: Saved) -> str:
    """The text of the card of the model after a step.

    `evaluations` are the records of evaluations.jsonl, those of later steps too.
    """
    base = base_of(config.model)
    known = [record for record in evaluations if record["step"] <= step]
    parts = [
        front_matter(config, base, saved),
        f"# {code(base.name)}, after {step} steps of {config.method}",
        made_of(config, base),
        held_out(config, known),
        f"## Settings that are not the method's defaults\n\n{settings_table(config)}",
        f"## How to use it\n\n{usage(config, saved)}",
        f"## Limits\n\n{LIMITS}",
    ]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The base model
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """What is known of the model that a run began with."""

    name: str  # as it is shown: no folders
    hub: str = ""  # its name on the Hub, where it has one
    licence: dict[str, str] = field(default_factory=dict)  # those of LICENCE_FIELDS that its own card has


@functools.cache  # the Hub is asked once in a run
def base_of(model: str) -> Base:
    """What a GGUF file says of itself, or the card in a model's folder or on the Hub; empty fields where none does."""
    path = Path(model)
    if model.endswith(".gguf"):
        return Base(path.name, "", gguf_licence(path))
    if path.is_dir():
        metadata = card_metadata(path / NAME)
        snapshot = re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots", str(path.absolute()))  # of the Hub's cache
        hub = "/".join(snapshot.groups()) if snapshot else ""
        tags = metadata.get("tags")
        if not hub and isinstance(tags, list) and "dagrpo" in tags:  # a run's model: it names what it began with
            hub = str(metadata.get("base_model") or "")
        path = path.resolve()
        name = f"{path.parent.name}/model" if path.name == "model" else path.name  # of a run, or of its checkpoint
        return Base(name, hub, licence_of(metadata))
    if looks_like_path(model):
        return Base(path.name)
    return Base(model, model, licence_of(hub_metadata(model)))


def card_metadata(path: Path) -> dict[str, Any]:
    """The front matter of a card; nothing where there is no card, or none that can be read."""
    from huggingface_hub import metadata_load  # not above: it takes a third of a second

    try:
        return metadata_load(path) or {} if path.is_file() else {}
    except Exception:  # whatever its YAML is: the card of another is no reason to stop
        return {}


def hub_metadata(name: str) -> dict[str, Any]:
    """The front matter of a Hub model's card; nothing without a card, or where the Hub cannot be asked."""
    from huggingface_hub import hf_hub_download

    try:
        return card_metadata(Path(hf_hub_download(name, NAME, etag_timeout=3)))
    except Exception:  # no network, no card, no leave: its licence is then not known here
        return {}


def licence_of(metadata: dict[str, Any]) -> dict[str, str]:
    """The licence as a card's front matter names it."""
    found = {name: metadata.get(name) for name in LICENCE_FIELDS}
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def gguf_licence(path: Path) -> dict[str, str]:
    """The licence in a GGUF file's metadata."""
    if not path.is_file() or importlib.util.find_spec("gguf") is None:
        return {}
    from gguf import GGUFReader

    try:
        written = GGUFReader(path).fields.get("general.license")
        return {"license": str(written.contents())} if written is not None else {}
    except Exception:  # whatever its metadata is: it was loaded without
        return {}


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the card
# ---------------------------------------------------------------------------------------------------------------------


def front_matter(config: Config, base: Base, saved: Saved) -> str:
    """What the Hub reads: YAML between two lines of dashes, every text in it quoted."""
    lines = ["---"]
    if base.hub:
        lines.append(f"base_model: {quoted(base.hub)}")
    lines += [f"{name}: {quoted(value)}" for name, value in base.licence.items()]
    lines += [f"library_name: {'peft' if saved.is_adapter else 'transformers'}", "pipeline_tag: text-generation"]
    sets = [name for name in map(hub_set, [*config.data, *config.eval_data]) if name]
    if sets:
        lines += ["datasets:", *(f"- {quoted(name)}" for name in dict.fromkeys(sets))]
    lines += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(["dagrpo", config.method, "reinforcement-learning"]))]
    return "\n".join([*lines, "---"])


def made_of(config: Config, base: Base) -> str:
    """What the model is: base, licence, data, reward."""
    licence = base.licence.get("license_name") or base.licence.get("license")
    of_base = f"licence {code(licence)}" if licence else "whose licence is not known here: look at its own page"
    rewarded = "a verifier that compares final answers"
    if config.reward:
        rewarded = listed(map(without_folder, config.reward))
    lines = [
        f"- Base model: {code(base.name)}, {of_base}",
        f"- Trained on: {listed(map(without_folder, config.data))}",
        f"- Method: `{config.method}`, as the reference implementation of DaGRPO has it ([paper]({PAPER}))",
        f"- Reward: {rewarded}",
    ]
    if base.hub and base.hub != base.name:
        lines[0] += f"; it goes back to {code(base.hub)}"
    if config.anchors is not None:
        source = "the training questions" if config.anchors == "data" else code(without_folder(config.anchors))
        lines.append(f"- Verified solutions: of {source}, as far as they have any")
    if config.eval_data:
        lines.append(f"- Measured on: {listed(map(without_folder, config.eval_data))}")
    return "\n".join(lines)


def held_out(config: Config, evaluations: list[dict[str, Any]]) -> str:
    """The table of held-out questions before and after, with 95 % intervals over questions."""
    head = "## Held-out questions"
    if not evaluations:
        return f"{head}\n\nNot measured."
    first, last = evaluations[0], evaluations[-1]
    columns = [last] if first is last else [first, last]
    titles = ["before" if record["step"] == 0 else f"after step {record['step']}" for record in columns]
    name = "accuracy" if all("accuracy" in record for record in columns) else "reward"
    interval = "interval" if name == "accuracy" else "reward_interval"
    rows = [["", "questions", *titles]]
    rows.append([name, str(last["questions"]), *(with_interval(r[name], r.get(interval), name) for r in columns)])
    if "sets" in last:
        rows[1][0] = f"{name}, mean of the sets"
    for kind in ("set", "level"):
        for part, figures in last.get(f"{kind}s", {}).items():
            of_part = [record.get(f"{kind}s", {}).get(part, {}).get(name) for record in columns]
            cells = ["" if value is None else figure(value, name) for value in of_part]
            rows.append([f"{kind} {code(part, in_table=True)}", str(figures["questions"]), *cells])
    if all("length" in record for record in columns):
        rows.append(["tokens of an answer", "", *(f"{record['length']:.1f}" for record in columns)])
    samples = f"{config.eval_samples} answer{'s' if config.eval_samples > 1 else ''} to each question"
    where = f"{samples}, at temperature {config.eval_temperature:g} and at most {config.max_new_tokens} tokens."
    return f"{head}\n\n{table(rows)}\n\n{where} In brackets: 95 % intervals over questions."


def settings_table(config: Config) -> str:
    defaults = {**asdict(Config()), **METHODS[config.method]}
    changed = {
        name: value
        for name, value in asdict(config).items()
        if name not in NOT_OF_THE_MODEL and value != defaults[name]
    }
    if not changed:
        return "None."
    rows = [["setting", "value"]]
    for name, value in changed.items():
        values = value if isinstance(value, list) else [value]
        text = " ".join(without_folder(each) if isinstance(each, str) else shown(each) for each in values)
        rows.append([f"`{flag_name(name)}`", code(text, in_table=True)])
    return table(rows)


def usage(config: Config, saved: Saved) -> str:
    """A snippet for transformers that asks as training did, and the command that measures the model."""
    style, limit = config.prompt_style, f"max_new_tokens={config.max_new_tokens}"
    lines = [
        "from transformers import pipeline",
        "",
        'ask = pipeline("text-generation", model=MODEL)',
        'problem = "..."',
    ]
    if saved.has_template:
        *before, asked = turns_of(PLACE, None, style)
        turns = [f'{{"role": {turn["role"]!r}, "content": {turn["content"]!r}}}' for turn in before]
        turns.append(f'{{"role": "user", "content": {asked["content"]!r}.replace({PLACE!r}, problem)}}')
        thinking = {} if style.enable_thinking is None else {"enable_thinking": style.enable_thinking}
        if arguments := style.arguments | thinking:
            limit += f", tokenizer_encode_kwargs={arguments!r}"
        lines += ["turns = [", *(f"    {turn}," for turn in turns), "]", f"answer = ask(turns, {limit})"]
        lines.append('print(answer[0]["generated_text"][-1]["content"])')
    else:
        shown = [f"{without_turns(each.problem, each.choices, style)}{each.solution}\n\n" for each in style.examples]
        prompt = "".join(shown) + without_turns(PLACE, None, style)
        lines.append(f"prompt = {prompt!r}.replace({PLACE!r}, problem)")
        lines.append(f"answer = ask(prompt, {limit}, return_full_text=False)")
        lines.append('print(answer[0]["generated_text"])')
    snippet = "\n".join(f"    {line}".rstrip() for line in lines)
    adapter = "It is an adapter (LoRA), which is loaded with its base model: `pip install peft`. "
    return (
        f"{adapter if saved.is_adapter else ''}"
        "`MODEL` is this folder, or its name on the Hub. The prompt is that of training:\n\n"
        f"{snippet}\n\nTo measure it, with the program that trained it:\n\n"
        "    python evaluate.py --model MODEL --data QUESTIONS.jsonl --samples 4"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Texts of others in Markdown and YAML
# ---------------------------------------------------------------------------------------------------------------------


def hub_set(source: str) -> str:
    """The name of a Hub data set among the sources of data; nothing for a file."""
    path = source.partition(":")[0]
    is_file = (
        os.path.exists(source) or os.path.exists(path) or path.lower().endswith(DATA_FILES) or looks_like_path(path, 2)
    )
    return "" if is_file else "/".join(path.split("/")[:2])


def without_folder(source: str) -> str:
    """A file, file:part or file.py:function, without the folders of this machine; any other text as it is."""
    there = os.path.exists(source) or os.path.exists(source.partition(":")[0])
    return re.split(r"[/\\]", source)[-1] if os.path.isabs(source) or there else source


def printed(text: str) -> str:
    """The text on one line, with what no eye can see spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: str) -> str:
    """The text as a YAML string."""
    return '"' + printed(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def code(text: str, *, in_table: bool = False) -> str:
    """The text as Markdown code: nothing in it is markup."""
    text = printed(text)
    if in_table and "|" in text:  # which ends a cell even in a code span, and sometimes behind a backslash
        plain = "".join(c if c.isalnum() or c in " .,:;=/+-" else f"&#{ord(c)};" for c in text)
        return f"<code>{plain}</code>"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest or not text.strip() else ""
    return fence + space + text + space + fence


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(code, names))


def figure(value: float, name: str) -> str:
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.3g}"


def with_interval(value: float, interval: list[float] | None, name: str) -> str:
    if interval is None:
        return figure(value, name)
    low, high = (figure(end, name).removesuffix(" %") for end in interval)
    return f"{figure(value, name)} ({low} to {high})"


def table(rows: list[list[str]]) -> str:
    """Rows as a Markdown table; the first one is its head."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])
