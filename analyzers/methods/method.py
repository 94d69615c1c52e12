"""What a method is: what PEFT calls it, what it starts from, what it writes, where its defaults come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from analyzers.methods.saved import Module, Saved

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor


@dataclass(frozen=True)
class FirstBatches:
    """What an adapter's start is read off: the first batches of training, gone over anew by each call.

    inputs: keyword arguments of the adapted model's forward, one mapping a batch. losses: of the whole model, head included, on the same
    batches, each computed when it is asked for. rate: the adapter's learning rate at the first step that moves it.
    """

    inputs: Callable[[], Iterator[Mapping[str, Any]]]
    losses: Callable[[], Iterator[Tensor]]
    rate: float


@dataclass(frozen=True)
class AdapterSpec:
    """An adapter to be built, in terms that every method understands.

    method: a key of `METHODS`. target_modules: PEFT suffixes or whole module names. rank: the rank of every module.
    ranks: module name -> rank where it differs (PEFT's ``rank_pattern``). alpha_over_r: the scaling, the same in every module;
    None takes the method's own default. task_type: PEFT's, such as ``SEQ_CLS`` or ``CAUSAL_LM``. modules_to_save: trained and
    saved whole. options: further arguments of the method's PEFT configuration.
    """

    method: str
    target_modules: Sequence[str]
    rank: int = 16
    ranks: Mapping[str, int] = field(default_factory=dict)
    alpha_over_r: float | None = None
    dropout: float = 0.0
    task_type: str | None = None
    modules_to_save: Sequence[str] | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def alpha(self, rank: int) -> float:
        """PEFT's alpha of a module of `rank`; a scaling that was left open (see `Method.complete`) counts as 1."""
        return (1.0 if self.alpha_over_r is None else self.alpha_over_r) * rank


def kept_as_lora(module: Module, trained_bytes: int, dropout: float) -> float:
    """Bytes a token that autograd keeps where A and B are both trained: the input, and its image under A."""
    return trained_bytes * (module.inner + module.rank)


def kept_as_lora_xs(module: Module, trained_bytes: int, dropout: float) -> float:
    """Bytes a token that autograd keeps where A and B are frozen: the image under A in float32, and what dropout kept."""
    return 4 * module.rank + (module.inner if dropout else 0)


@dataclass(frozen=True)
class Rate:
    """A learning rate to begin with, and where it comes from."""

    value: float
    source: str


BENCHMARK = "docs/compare.md: MiniLM on STS-B"
PEFT_BENCHMARK = "PEFT's own MetaMathQA benchmark, Llama-3.2-3B"
NO_SOURCE = "none published that we know of; --tune-lr looks for one, and of several with --learning-rate the best on validation is reported"
OUR_DEFAULT = "our default; --tune-lr looks for a better one"


@dataclass(frozen=True)
class Method:
    """A way to fine-tune, and every fact about it that another room needs.

    config: makes the PEFT configuration of an `AdapterSpec`; None for methods without an adapter (full, head-only).
    learning_rate: for tasks with a head, from rate_source (``head-only``: the rate of the head in every method). causal: for
    language modelling. alpha_over_r: its customary scaling. peft_type: what PEFT calls its kind.
    ranked: whether a rank means anything to it. per_layer_ranks: whether it honours ranks that differ between modules.
    source: where method and defaults come from.

    written: the rule for what it saves, (spec, modules, dtype) -> `Saved`; None: PEFT is asked, which takes seconds on a large
    model. written_options: the options of its configuration that the rule takes into account or that change no tensor.
    written_for_embeddings: whether the rule knows embeddings too. rank_within_matrix: whether PEFT refuses a rank above min(out, in).
    starts_from_svd: whether it begins with singular vectors of every target, so that setting it up takes the time of an SVD.
    starts_from_data: (model of PEFT, first batches) -> nothing; gives it the start that it reads off the training data. changes_base:
    whether its start is taken out of the base weights in a way that PEFT does not find again on load. lora_family: whether it is of PEFT's type LORA. copies_output: whether its
    PEFT layer copies the output of a 4-bit layer. kept: (module, bytes of a trained number, dropout) -> bytes a token that autograd
    keeps for it, for the closed form of memory.
    """

    name: str
    label: str
    summary: str
    source: str
    learning_rate: float
    alpha_over_r: float = 1.0
    rate_source: str = NO_SOURCE
    causal: Rate | None = None
    peft_type: str = ""
    ranked: bool = True
    per_layer_ranks: bool = False
    default_rank: int = 8
    config: Callable[[AdapterSpec], PeftConfig] | None = None
    written: Callable[[AdapterSpec, Sequence[Module], str], Saved] | None = None
    written_options: frozenset[str] = frozenset()
    written_for_embeddings: bool = False
    rank_within_matrix: bool = False
    starts_from_svd: bool = False
    starts_from_data: Callable[[PeftModel, FirstBatches], None] | None = None
    changes_base: bool = False
    lora_family: bool = False
    copies_output: bool = False
    kept: Callable[[Module, int, float], float] = kept_as_lora

    @property
    def is_loraxs(self) -> bool:
        """Whether it is saved by this project's own tuner, with its configuration and its card."""
        return self.peft_type == "LORAXS"

    def rate(self, causal: bool = False) -> Rate:
        """The learning rate to begin with. causal: on language modelling, rather than on a task with a head."""
        return self.causal if causal and self.causal else Rate(self.learning_rate, self.rate_source)

    def complete(self, spec: AdapterSpec) -> AdapterSpec:
        """`spec` with this method's customary scaling where it says none: what `config` and `written` are given."""
        return spec if spec.alpha_over_r is not None else replace(spec, alpha_over_r=self.alpha_over_r)

    def configured(self, spec: AdapterSpec) -> PeftConfig | None:
        """PEFT's configuration of `spec`; None for a method without an adapter."""
        return self.config(self.complete(spec)) if self.config else None


def common(spec: AdapterSpec) -> dict[str, Any]:
    """The arguments that every PEFT configuration takes."""
    return {
        "target_modules": list(spec.target_modules),
        "task_type": spec.task_type,
        "modules_to_save": list(spec.modules_to_save) if spec.modules_to_save else None,
        **spec.options,
    }
