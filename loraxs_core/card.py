"""The README.md beside an adapter, which is its page on the hub: what it is, its ranks and sizes, how to load it, whose licence it is
under. What is written here stands between two markers; what a person writes around them is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_core.adapter_names import read_name
from loraxs_core.architecture import AUTO_CLASSES
from loraxs_core.base_name import BaseName

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

CARD = "README.md"
PACKAGE = "loraxs-workbench"  # what pip installs; `loraxs_core` is what Python imports
PAPER = "https://arxiv.org/abs/2405.17604"
BEGIN, END = "<!-- loraxs: what follows is written anew when the adapter is saved -->", "<!-- loraxs: end -->"
# How the hub calls what a model with this head does.
PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}
_PLACEHOLDER = "[More Information Needed]"  # in the hub's template, which PEFT saves unfilled
_ADAPTER_OF = "base_model:adapter:"  # PEFT's tag, with what from_pretrained was given behind it


@dataclass(frozen=True)
class AdapterFacts:
    """What a card says of an adapter. method: ``LoRA-XS`` or ``LoRA``. base: its base model. task: PEFT's task type. ranks: by module.
    numbers: trained or stored numbers in the adapter's matrices. file_bytes: of its safetensors. whole: names of modules saved whole.
    scaling: α/r where it is the same in every module. remarks: sentences about who can read it.
    """

    method: str
    base: BaseName
    task: str | None
    ranks: Mapping[str, int]
    numbers: int
    file_bytes: int
    whole: tuple[str, ...] = ()
    scaling: float | None = None
    remarks: tuple[str, ...] = field(default=())


def write_card(folder: Path, facts: AdapterFacts) -> Path:
    """Writes, or brings up to date, the card in `folder`: the metadata and the part between the markers. The unfilled template that
    PEFT saves is replaced; any other text is kept."""
    path = folder / CARD
    path.write_text(card_text(facts, _read(path)), encoding="utf-8")
    return path


def card_text(facts: AdapterFacts, old: ModelCard | None = None) -> str:
    """The card of an adapter, in Markdown with YAML front matter. old: the card so far, whose own text and metadata are kept."""
    from huggingface_hub import ModelCardData

    data = old.data if old else ModelCardData()
    _name_base(data, facts.base)
    data.library_name = "peft"
    data.license = data.license or facts.base.licence
    data.pipeline_tag = data.pipeline_tag or PIPELINES.get(facts.task)
    data.tags = sorted({*(data.tags or []), "lora-xs" if facts.method == "LoRA-XS" else "lora"})
    block = f"{BEGIN}\n\n{_body(facts)}\n\n{END}"
    text = old.text.strip() if old else ""
    before, begin, rest = text.partition(BEGIN)
    if begin and END in rest:
        text = f"{before}{block}{rest.partition(END)[2]}"
    elif _PLACEHOLDER in text or not text:
        text = block
    else:
        text = f"{text}\n\n{block}"
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


def name_base(path: Path, given: str | None, base: BaseName) -> None:
    """Takes the path `given` of a base out of the metadata of the card at `path`, if PEFT put it there."""
    card = _read(path)
    if card is not None and given != base.id and card.data.get("library_name") == "peft" and card.data.base_model == given:
        _name_base(card.data, base)
        path.write_text(f"---\n{card.data.to_yaml()}\n---\n\n{card.text.strip()}\n", encoding="utf-8")


def loraxs_facts(
    shapes: Mapping[str, tuple[int, ...]], base: BaseName, task: str | None, scaling: float | None, file_bytes: int
) -> AdapterFacts:
    """The facts of a LoRA-XS adapter whose file has `file_bytes` and holds tensors of these `shapes`, by key; the rest as there."""
    names = {key: read_name(key) for key in shapes}
    ranks = {name.module: shapes[key][0] for key, name in names.items() if name.part == "loraxs_R"}
    return AdapterFacts(
        method="LoRA-XS",
        base=base,
        task=task,
        ranks=ranks,
        numbers=sum(rank * rank for rank in ranks.values()),
        file_bytes=file_bytes,
        whole=tuple(sorted({name.module for name in names.values() if name.module not in ranks})),
        scaling=scaling,
    )


def _name_base(data: ModelCardData, base: BaseName) -> None:
    tags = [tag for tag in data.tags or [] if not tag.startswith(_ADAPTER_OF)]
    data.base_model = base.id
    data.tags = sorted({*tags, *([f"{_ADAPTER_OF}{base.id}"] if base.id else [])}) or None
    data.base_model_relation = "adapter" if base.id else None


def _read(path: Path) -> ModelCard | None:
    from huggingface_hub import ModelCard

    try:
        return ModelCard.load(path) if path.is_file() else None
    except Exception:  # front matter that YAML refuses: kept as text below a new one
        from huggingface_hub import ModelCardData

        card = ModelCard.from_template(ModelCardData(), template_str="")
        card.text = path.read_text(encoding="utf-8", errors="replace")
        return card


def _body(facts: AdapterFacts) -> str:
    name = f"`{facts.base.id}`" if facts.base.id else "a model that is not on the hub"
    parts = [
        f"# {facts.method} adapter of {facts.base.id or 'a local model'}",
        _what(facts, name),
        _table(facts),
        _loading(facts),
    ]
    if facts.remarks:
        parts.append("## Who can read it\n\n" + "\n".join(f"- {remark}" for remark in facts.remarks))
    parts.append(_licence(facts))
    return "\n\n".join(parts)


def _what(facts: AdapterFacts, name: str) -> str:
    if facts.method == "LoRA-XS":
        return (
            f"A [LoRA-XS]({PAPER}) adapter of {name}: `W = W0 + (α/r) · B R A`, where A and B come from the singular vectors of the base "
            "weight W0 and only R (r x r) was trained. The file holds every R, and a proof of the A and B it was trained with: they are "
            "rebuilt from the base model when the adapter is loaded, and checked."
        )
    return (
        f"A plain LoRA of {name}, with exactly the update ΔW = (α/r) · B R A of the [LoRA-XS]({PAPER}) adapter that it was exported "
        "from: `lora_A = A`, `lora_B = B R`, with the scaling in the numbers."
    )


def _table(facts: AdapterFacts) -> str:
    rows = [
        ("base model", f"`{facts.base.id}`" if facts.base.id else "not on the hub"),
        ("base revision", f"`{facts.base.revision}`" if facts.base.revision else ""),
        ("task type", f"`{facts.task}`" if facts.task else ""),
        ("adapted modules", f"{len(facts.ranks)}: {_listed(sorted({name.rpartition('.')[2] for name in facts.ranks}))}"),
        ("rank", _ranks(facts.ranks.values())),
        ("α/r", "" if facts.scaling is None else f"{facts.scaling:g}"),
        ("numbers", f"{facts.numbers:,}"),
        ("modules saved whole", _listed(facts.whole)),
        ("file", f"{facts.file_bytes:,} bytes"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows if value)])


def _loading(facts: AdapterFacts) -> str:
    auto = AUTO_CLASSES.get(facts.task) or "AutoModel"
    given = f'"{facts.base.id}"' if facts.base.id else '"the base model\'s folder"'
    revision = f', revision="{facts.base.revision}"' if facts.base.id and facts.base.revision else ""
    ours = facts.method == "LoRA-XS"
    code = [
        *(["import loraxs_core.tuner  # tells PEFT what LoRA-XS is"] if ours else []),
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f"base = {auto}.from_pretrained({given}{revision})",
        'model = PeftModel.from_pretrained(base, "this folder, or its id on the hub")',
    ]
    install = f"```bash\npip install {PACKAGE if ours else 'peft'}\n```\n\n"
    after = (
        "\n\nServers read it as a plain LoRA (`loraxs export`) or merged into the weights (`loraxs merge`), both in the same package."
        if ours
        else ""
    )
    return "## How to load it\n\n" + install + "```python\n" + "\n".join(code) + "\n```" + after


def _licence(facts: AdapterFacts) -> str:
    stated = facts.base.licence
    text = f"The base model's card says `{stated}`" if stated else "See the card of the base model"
    return f"## Licence\n\n{text}; its terms hold wherever the adapter is used, since it does nothing without the base."


def _ranks(ranks: Iterable[int]) -> str:
    counts = Counter(ranks)
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{rank} in {count}" for rank, count in sorted(counts.items()))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
