"""What is proved with which runs: one entry a model and a task, each a sweep that `loraxs compare` runs as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from analyzers.compare import SweepSettings
from analyzers.compare.settings import TrialSettings


@dataclass(frozen=True)
class Entry:
    """One comparison. sweep: what runs in any case, each method at its own default rate. further: sweeps that run once the first ones of
    all entries are there, each as what differs from `sweep`; a variant is reported at the rate that is best on validation."""

    name: str
    sweep: SweepSettings
    further: Sequence[Mapping[str, object]] = ()

    @property
    def sweeps(self) -> Iterator[SweepSettings]:
        """The whole entry, the most valuable first."""
        yield self.sweep
        for differs in self.further:
            yield SweepSettings(**{**self.sweep.to_dict(), **differs})

    def trials(self) -> Iterator[TrialSettings]:
        """All of them, each once, a seed after the other within a sweep."""
        yield from {trial.id: trial for sweep in self.sweeps for trial in sweep.trials()}.values()

    @property
    def about(self) -> dict[str, object]:
        """What all its trials share and their folders' names do not tell."""
        return {
            name: getattr(self.sweep, name) for name in ("model", "task", "steps", "batch", "sequence", "validation_examples")
        }

    @property
    def commands(self) -> list[str]:
        """What runs the same trials by hand."""
        return [command(sweep) for sweep in self.sweeps]


def command(sweep: SweepSettings) -> str:
    """The `loraxs compare` of `sweep`; where its seeds are not the first ones, or a setting has no option, it would not be the same."""
    assert tuple(sweep.seeds) == tuple(range(sweep.seed_count))
    words = [
        f"loraxs compare {sweep.model} --task {sweep.task} --methods {','.join(sweep.methods)} --seeds {sweep.seed_count}",
        f"--steps {sweep.steps} --batch {sweep.batch} --sequence {sweep.sequence}",
    ]
    words += [f"--ablate {','.join(sweep.ablate)}"] if sweep.ablate else []
    words += [f"--rank {sweep.rank}"] if sweep.rank else []
    words += [f"--learning-rate {name}={','.join(f'{rate:g}' for rate in sweep.rates(name))}" for name in sweep.learning_rates]
    words += [f"--evaluations {sweep.evaluations}", f"--validation-examples {sweep.validation_examples}"]
    words += [f"--test-examples {sweep.test_examples}"] if sweep.test_examples else []
    words += ["--baseline lora-xs"] if "lora-xs" in sweep.methods else []
    return " ".join(words)


ENCODER = {"model": "minilm", "steps": 60, "batch": 16, "evaluations": 1, "validation_examples": 128, "seeds": 3}
DECODER = {"model": "smollm2-135m", "evaluations": 1, "validation_examples": 32, "seeds": 3}
RACE = ("head-only", "lora", "vera", "lora-xs")
ENTRIES = (
    Entry(
        "minilm_stsb",
        SweepSettings(task="stsb", methods=RACE, ablate=("basis", "rank"), sequence=48, test_examples=400, **ENCODER),
        tuple({"methods": ("lora-xs",), "learning_rates": {"lora-xs": rate}} for rate in (0.004, 0.03)),
    ),
    Entry(
        "minilm_sst2",
        SweepSettings(task="sst2", methods=RACE, sequence=48, test_examples=400, **ENCODER),
        ({"methods": ("lora-xs",), "ablate": ("basis",)},),
    ),
    Entry("minilm_mrpc", SweepSettings(task="mrpc", methods=("head-only", "lora", "lora-xs"), sequence=64, **ENCODER)),
    Entry(
        "smollm2_boolq",
        SweepSettings(
            task="boolq", methods=("head-only", "lora", "lora-xs"), steps=24, batch=4, sequence=192, test_examples=96, **DECODER
        ),
    ),
    Entry(
        "smollm2_arc-easy",
        SweepSettings(
            task="arc-easy",
            methods=("head-only", "lora", "lora-xs"),
            steps=40,
            batch=8,
            sequence=64,
            test_examples=160,
            **DECODER,
        ),
    ),
)
