"""What older PyTorch and transformers do otherwise, as far as memory is concerned; told by their version numbers."""

from __future__ import annotations

from dataclasses import dataclass

from loraxs_core.errors import SettingsError


@dataclass(frozen=True)
class Software:
    """Differences from what is installed.

    shifted_logits: the causal loss copies the logits of all but the last token, in fp32 (`ForCausalLMLoss` until transformers 4.49).
    float_logits: the outputs hold the logits in fp32 too (until 4.45). linear_experts: experts are linear layers of their own, which
    bitsandbytes quantises; stacked in one tensor they stay in 16 bit (from 5.0). expanded_keys: sdpa attention repeats the keys
    and values of grouped heads (until 4.47). reentrant: layers are checkpointed reentrantly unless told otherwise
    (until 4.x). softmax_keeps_input: its backward pass keeps the input as well as the output (PyTorch until 1.10).
    keeps_gradients: ``zero_grad`` fills gradients with zeros and keeps them (until 1.13).
    """

    shifted_logits: bool = False
    float_logits: bool = False
    linear_experts: bool = False
    expanded_keys: bool = False
    reentrant: bool = False
    softmax_keeps_input: bool = False
    keeps_gradients: bool = False

    @property
    def old_loss(self) -> bool:
        """Whether the causal loss is not the installed one's."""
        return self.shifted_logits or self.float_logits


def software(transformers: str | None, torch: str | None) -> Software:
    """What the versions do otherwise; None stands for the installed one. Raises SettingsError for what is no version."""
    library = _version("transformers", transformers) if transformers else (999,)
    engine = _version("torch", torch) if torch else (999,)
    return Software(
        shifted_logits=library < (4, 50),
        float_logits=library < (4, 46),
        linear_experts=library < (5,),
        reentrant=library < (5,),
        expanded_keys=library < (4, 48),
        softmax_keeps_input=engine < (1, 11),
        keeps_gradients=engine < (2,),
    )


def _version(of: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in str(text).split("+")[0].split(".")[:2])
    except ValueError:
        raise SettingsError(
            f"{text!r} is no version of {of}; give numbers such as {'4.48' if of == 'transformers' else '2.4'}."
        ) from None
