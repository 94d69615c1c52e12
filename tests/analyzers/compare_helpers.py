"""A tiny model with a tokenizer and a task that it can learn in seconds: for tests of the machinery, not of the methods."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

GOOD = ["good", "great", "lovely", "fine"]
BAD = ["bad", "awful", "poor", "sad"]
# Of PEFT's defaults only what does not fit matrices this small.
SMALL: dict[str, dict] = {"vblora": {"vector_length": 8}}
FILLER = ["the", "film", "was", "a", "very", "story", "and", "it", "felt", "long"]


def tiny_model(folder: Path, *, sentence_encoder: bool = False, model=None) -> Path:
    """A random BERT (2 layers, 32 wide), or `model`, with a word tokenizer; optionally marked as a sentence encoder."""

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    (model or BertModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if sentence_encoder:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
        modules.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def sentiment_csv(path: Path, rows: int = 200) -> Path:
    """Sentences with one telling word among fillers; the label is which kind it was."""
    random.seed(0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for index in range(rows):
            label = index % 2
            words = random.choices(FILLER, k=random.randint(3, 9))
            words.insert(random.randrange(len(words)), random.choice(GOOD if label else BAD))
            writer.writerow([" ".join(words), ("negative", "positive")[label]])
    return path


def tiny_decoder(folder: Path) -> Path:
    """A random Llama (2 layers, 32 wide) with a word tokenizer that has a chat template and an end of text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[EOS]",
        *["one", "two", "three", "four", "after", "comes", "yes", "no", "Question", "Answer", ":", "?", "user", "assistant"],
    ]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }}"
        "{% if message['role'] == 'assistant' %} [EOS]{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def written(path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def labelled(count, start=0):
    return [{"text": f"text {n}", "label": ("bad", "good")[n % 2]} for n in range(start, start + count)]
