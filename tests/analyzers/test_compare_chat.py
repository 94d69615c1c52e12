"""Conversations: which tokens are learnt under chat templates of many kinds, turn by turn; tools; templates that cannot serve."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from analyzers.compare.chat import IGNORED, conversation
from analyzers.compare.tasks import Example, open_task
from loraxs_core.errors import SettingsError

SPECIAL = [
    "<|call|>",
    "<|end of text|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|eot|>",
    "<|role|>",
]
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3: an empty thought before the last answer alone, thoughts of earlier ones left out.
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last and '<think>' not in m['content'] %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek's: what calls for an answer begins a thought that the history does not have.
THINKS_FIRST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}{% else %}<|assistant|>"
    "{{ m['content'].split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'].upper() }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
WHOLE_ONLY = "{% if messages|length != 4 %}{{ raise_exception('four turns') }}{% endif %}" + CHATML
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|role|>{{ m['role'] }}: {% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|eot|>\n{% endfor %}{% if add_generation_prompt %}<|role|>assistant: {% endif %}"
)
CALLS = (
    "{% if tools %}<|role|>tools: {{ tools | tojson }}<|eot|>{% endif %}{% for m in messages %}<|role|>{{ m['role'] }}: {{ m['content'] }}"
    "{% for call in m.get('tool_calls', []) %}CALL {{ call['function']['name'] }} {{ call['function']['arguments'] | tojson }}{% endfor %}"
    "<|eot|>{% endfor %}{% if add_generation_prompt %}<|role|>assistant: {% endif %}"
)


def tokenizer(template):
    """One token a byte, so that every character's label can be seen."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({one: index for index, one in enumerate(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    made.chat_template = template
    return made


def said(*contents):
    roles = ("user", "assistant")
    return tuple({"role": roles[place % 2], "content": content} for place, content in enumerate(contents))


def learnt(template, messages, learnt_from=0, tools=()):
    """(what is learnt, a text a stretch; all of it as text)."""
    made = tokenizer(template)
    ids, labels = conversation(
        Example("", answer="x", messages=tuple(messages), learnt_from=learnt_from, tools=tuple(tools)), made
    )
    as_read = made.apply_chat_template(made_for(template, messages), tools=list(tools) or None, tokenize=True, return_dict=True)
    assert ids in (as_read["input_ids"], [*as_read["input_ids"], made.eos_token_id])
    assert all(label in (IGNORED, one) for one, label in zip(ids, labels, strict=True))
    stretches, open_ = [], False
    for one, label in zip(ids, labels, strict=True):
        if label != IGNORED:
            stretches = [*stretches[:-1], [*stretches[-1], one]] if open_ else [*stretches, [one]]
        open_ = label != IGNORED
    return [made.decode(stretch) for stretch in stretches], made.decode(ids)


def made_for(template, messages):
    if template is not PARTS:
        return list(messages)
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]


TALK = said("How are you?", "Fine.", "And 2+2?", "<b>4</b>")


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (CHATML, ["Fine.<|im_end|>", "<b>4</b><|im_end|>"]),
        (REWRITES, ["Fine.<|im_end|>", "<think>\n\n</think>\n\n<b>4</b><|im_end|>"]),
        (THINKS_FIRST, ["Fine.<|end|>", "<b>4</b><|end|>"]),
        (LLAMA2, [" Fine. </s>", " <b>4</b> </s>"]),
        (PLAIN, ["Fine.\n", "<b>4</b>\n</s>"]),
        (WHOLE_ONLY, ["Fine.<|im_end|>", "<b>4</b><|im_end|>"]),
        (PARTS, ["Fine.<|eot|>", "<b>4</b><|eot|>"]),
        (GENERATION, ["Fine.<|im_end|>", "<b>4</b><|im_end|>"]),
    ],
    ids=["ChatML", "rewrites earlier turns", "thinks first", "Llama 2", "no special tokens", "whole conversations alone", "parts", "generation"],
)  # fmt: skip
def test_the_assistants_words_are_learnt_and_nothing_else(template, found):
    assert learnt(template, TALK)[0] == found
    if template is not WHOLE_ONLY:
        assert learnt(template, TALK[:2])[0] == [found[1].replace("<b>4</b>", "Fine.")]
    assert learnt(template, TALK, learnt_from=2)[0] == found[1:]


ROLES_END = (  # as GLM's: a turn is over where the next role begins
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALLS_UNASKED = (  # as Command A's: the words that call for an answer stand behind every conversation
    "{% for m in messages %}<|role|>{{ m['role'] }}<|end|>{{ m['content'] }}</s>{% endfor %}<|role|>assistant<|end|>"
)
ENDS_TWICE = CHATML + "{% if not add_generation_prompt %}<|end of text|>{% endif %}"  # as Phi's


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (ROLES_END, ["\nFine.<|user|>", "\n<b>4</b></s>"]),
        (CALLS_UNASKED, ["Fine.</s>", "<b>4</b></s>"]),
        (ENDS_TWICE, ["Fine.<|im_end|>", "<b>4</b><|im_end|>"]),
        (CHATML.replace("<|im_end|>", "<end>"), ["Fine.<end>", "<b>4</b><end>"]),
        ("{{ bos_token }}" + PLAIN.replace("\n", " "), ["Fine. ", "<b>4</b> </s>"]),
    ],
    ids=["the next role", "calls unasked", "an end of the whole behind it", "an added token that is not special", "none"],
)
def test_what_ends_a_turn_is_learnt_and_nothing_behind_it(template, found, monkeypatch):
    make = tokenizer

    def with_an_added_token(given):
        made = make(given)
        made.add_tokens(["<end>"])
        return made

    monkeypatch.setitem(globals(), "tokenizer", with_an_added_token)
    assert learnt(template, TALK)[0] == found


def test_a_templates_own_mask_is_the_same():
    made = tokenizer(GENERATION)
    _, labels = conversation(Example("", answer="x", messages=TALK), made)
    found = made.apply_chat_template(list(TALK), tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert [label != IGNORED for label in labels] == [bool(one) for one in found["assistant_masks"]]


def test_thoughts_that_a_template_leaves_out_are_not_learnt():
    talk = said("Hi", "<think>\nhm\n</think>\n\nTwo.", "More", "<think>\nhm again\n</think>\n\nFour.")
    assert learnt(REWRITES, talk)[0] == ["Two.<|im_end|>", "<think>\nhm again\n</think>\n\nFour.<|im_end|>"]


def test_an_assistant_that_speaks_first_does_not_learn_the_system_prompt():
    talk = ({"role": "assistant", "content": "Welcome."}, *said("Hi", "Hello."))
    found, text = learnt(CHATML, talk)
    assert text.startswith("<|im_start|>system\nYou help.")
    assert found == ["Welcome.<|im_end|>", "Hello.<|im_end|>"]


def test_system_prompts_and_answers_like_questions():
    talk = ({"role": "system", "content": "Be brief."}, *said("Hi", "Hi", "QZ", "QZ"))
    found, text = learnt(CHATML, talk)
    assert "You help." not in text
    assert found == ["Hi<|im_end|>", "QZ<|im_end|>"]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLED = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "Four."},
)


def test_calls_of_tools_are_learnt_and_the_tools_are_read():
    found, text = learnt(CALLS, CALLED, tools=[TOOL])
    assert found == ['CALL add {"a": 2}<|eot|>', "Four.<|eot|>"]
    assert '"name": "add"' in text.partition("<|role|>user")[0]


# As Qwen3's: a thought before the last answer alone, and what a turn calls behind what it says.
THINKS_AND_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}{% for call in m.get('tool_calls', []) %}<tool_call>{{ call['function']['arguments'] | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Gemma 4's: what a tool answers stands in the turn that called it, before what that turn says; one that goes on after it has a
# header or, as where the model writes it, none.
AMID = (
    "{% for m in messages %}{% if m['role'] != 'tool' %}{% if AGAIN or not loop.previtem or loop.previtem['role'] != 'tool' %}<|role|>{{ m['role'] }}\n{% endif %}"
    "{% if m.get('tool_calls') %}{% for call in m['tool_calls'] %}<|call|>{{ call['function']['arguments'] | tojson }}<|end|>{% endfor %}"
    "{% if loop.nextitem and loop.nextitem['role'] == 'tool' %}<|user|>answer: {{ loop.nextitem['content'] }}<|eot|>{{ m['content'] }}"
    "{% else %}{{ m['content'] }}<|user|>{% endif %}{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'tool' %}<|role|>assistant\n{% endif %}"
)
SAID_AND_CALLED = (CALLED[0], {**CALLED[1], "content": "Let me add."}, *CALLED[2:])


@pytest.mark.parametrize(
    ("template", "messages", "found"),
    [
        (THINKS_AND_CALLS, CALLED, ['<tool_call>{"a": 2}</tool_call><|im_end|>', "<think>\n\n</think>\n\nFour.<|im_end|>"]),
        (
            THINKS_AND_CALLS,
            SAID_AND_CALLED,
            ['Let me add.<tool_call>{"a": 2}</tool_call><|im_end|>', "<think>\n\n</think>\n\nFour.<|im_end|>"],
        ),
        (AMID.replace("AGAIN", "false"), CALLED, ['<|call|>{"a": 2}<|end|><|user|>', "Four.<|im_end|>"]),
        (AMID.replace("AGAIN", "true"), CALLED, ['<|call|>{"a": 2}<|end|><|user|>', "Four.<|im_end|>"]),
        (AMID.replace("AGAIN", "true"), SAID_AND_CALLED, ['<|call|>{"a": 2}<|end|><|user|>', "Let me add.", "Four.<|im_end|>"]),
        (CALLS.replace("| tojson }}{% endfor %}<|eot|>", "+ '' }}{% endfor %}<|eot|>"), CALLED, ['CALL add {"a": 2}<|eot|>', "Four.<|eot|>"]),
        (
            CALLS.replace("{{ m['content'] }}", "{% if not m.get('tool_calls') %}{{ m['content'] }}{% endif %}"),
            SAID_AND_CALLED[:2],
            ['CALL add {"a": 2}<|eot|>'],
        ),
    ],
    ids=["rewritten", "rewritten and said", "amid", "a second header", "said behind the answer", "arguments as text", "words left out"],
)  # fmt: skip
def test_calls_are_learnt_wherever_a_template_puts_them_and_no_answers_of_tools(template, messages, found):
    made = tokenizer(template)
    ids, labels = conversation(Example("", answer="x", messages=messages), made)
    stretches = "".join(made.decode([one]) if label != IGNORED else "\0" for one, label in zip(ids, labels, strict=True)).split(
        "\0"
    )
    assert [one for one in stretches if one] == found


@pytest.mark.parametrize(
    ("template", "messages", "sentence"),
    [
        (CHATML, CALLED, "leaves out the tools that the assistant calls"),
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", TALK, "leaves out what the assistant says"),
        (None, TALK, "has no chat template"),
        ("{{ messages[9]['content'] }}", TALK, "refuses a conversation of user, assistant, user, assistant"),
        ("{{ raise_exception('no system here') }}", TALK, r"refuses a conversation of .*: no system here\."),
    ],
)  # fmt: skip
def test_a_template_that_cannot_serve_says_why_in_a_sentence(template, messages, sentence):
    with pytest.raises(SettingsError, match=sentence) as raised:
        conversation(Example("", answer="x", messages=messages), tokenizer(template))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("as_text", [False, True], ids=["tools as lists", "tools as JSON"])
def test_tools_and_calls_of_a_file_reach_the_template_without_gaps(tmp_path, own_folders, as_text):
    """Rows of a table share their columns: what another row's call takes is null here, and no template may write that."""
    made = []
    for number in range(40):
        name, arguments = [("add", {"a": number}), ("weather", {"city": "Rome"})][number % 2]
        call = {
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments) if number % 4 > 1 else arguments},
        }
        tools = [
            {
                "type": "function",
                "function": {"name": name, "parameters": {"properties": {one: {"type": "string"} for one in arguments}}},
            }
        ]
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        made.append({"messages": messages, "tools": json.dumps(tools) if as_text else tools})
    made = [row for place, row in enumerate(made) if place % 4 < 2]  # arguments of one type a file, as JSON has them
    (tmp_path / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made * 2))
    example = open_task(f"data:{tmp_path / 'calls.jsonl'}").read().train[0]
    _, text = learnt(CALLS, example.messages, tools=example.tools)
    assert "null" not in text
    assert text.count("CALL") == 1
    assert text.count('"properties"') == 1
