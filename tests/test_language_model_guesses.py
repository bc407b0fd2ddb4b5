"""`examples/language_model_guesses.py` against a model that reads one prompt at a time."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.toy_text import WORDS, write_csv

EXAMPLE = Path(__file__).parents[1] / "examples/language_model_guesses.py"
TEXTS = [
    " ".join(WORDS[5 + (number * 7 + place) % (len(WORDS) - 5)] for place in range(2 + number)) for number in range(9)
]
CLASSES = WORDS[8:11]


def save_language_model(folder, kind, ends=False):
    """A small language model with the words of the toy texts; its tokenizer may put an end after a text."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[SEP]").save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5
        )
        model = GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes))
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(rows, words=CLASSES, header=("text", "label"), prompt="{} film", *more):
        file = write_csv(tmp_path / "texts.csv", header, rows)
        given = [file, str(tmp_path / "out.jsonl"), "--model", str(tmp_path / "model"), "--prompt", prompt, *more]
        monkeypatch.setattr("sys.argv", [EXAMPLE.name, *given, "--words", *words])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run


def read_one_by_one(model, texts):
    """The probabilities of the classes after each text, alone and without padding."""
    places, found = [WORDS.index(word) for word in CLASSES], []
    for text in texts:
        with torch.no_grad():
            logits = model(torch.tensor([[WORDS.index(word) for word in f"{text} film".split()]])).logits
        found.append(logits[0, -1, places].softmax(-1))
    return torch.stack(found)


def assert_guessed(rows, expected):
    torch.testing.assert_close(torch.tensor([row["label"] for row in rows]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ends", [False, True], ids=["", "end token"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_class_is_as_likely_as_its_word_after_the_prompt(run, tmp_path, kind, ends):
    expected = read_one_by_one(save_language_model(tmp_path / "model", kind, ends), TEXTS)
    rows = run([(text, "") for text in [*TEXTS, " "]])
    assert [row["text"] for row in rows] == TEXTS
    assert_guessed(rows, expected)


def test_it_says_how_many_guesses_are_right_if_all_classes_were_as_frequent(run, tmp_path, capsys):
    expected = read_one_by_one(save_language_model(tmp_path / "model", "llama"), TEXTS)
    labels = ["abc"[kind] for kind in (expected / expected.mean(0)).argmax(1).tolist()]
    assert len(set(labels)) == 3 and labels != ["abc"[kind] for kind in expected.argmax(1).tolist()]
    labels[0], labels[1] = "abc"[("abc".index(labels[0]) + 1) % 3], ""
    run(list(zip(TEXTS, labels, strict=True)))
    words = ", ".join(f"{word} for {name}" for word, name in zip(CLASSES, "abc", strict=True))
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"{words}: 87.5% of 8 guesses are right, if all classes are as frequent."
    )


def test_a_text_is_cut(run, tmp_path):
    model = save_language_model(tmp_path / "model", "llama")
    rows = run([[text] for text in TEXTS], CLASSES, ["text"], "{} film", "--max_length", "3")
    assert_guessed(rows, read_one_by_one(model, [" ".join(text.split()[:3]) for text in TEXTS]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"words": ["good", "bad", "good"]}, "two or more that begin with different tokens"),
        ({"words": ["good"]}, "two or more that begin with different tokens"),
        ({"prompt": "a film"}, "prompt='a film': expected one {}"),
        ({"prompt": "{} or {}"}, "expected one {}"),
        ({"words": ["fine", "dull"]}, r"words: 2, and the labels are of 3 classes: \['a', 'b', 'c'\]"),
    ],
)
def test_what_cannot_be_guessed_is_refused(run, tmp_path, given, message):
    save_language_model(tmp_path / "model", "gpt2")
    with pytest.raises(ValueError, match=message):
        run([(text, "abc"[number % 3]) for number, text in enumerate(TEXTS)], **given)
