"""`examples/language_model_guesses.py` against a model that reads one prompt at a time, and what is trained on it."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.toy_text import WORDS, write_csv

EXAMPLE = Path(__file__).parents[1] / "examples/language_model_guesses.py"
TEXTS = [
    " ".join(WORDS[5 + (number * 7 + place) % (len(WORDS) - 5)] for place in range(2 + number)) for number in range(9)
]
CLASSES = WORDS[8:11]


def save_language_model(folder, kind):
    """A small language model with the words of the toy texts."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
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
    def run(rows, words=CLASSES, header=("text", "label")):
        file = write_csv(tmp_path / "texts.csv", header, rows)
        given = [file, str(tmp_path / "out.jsonl"), "--model", str(tmp_path / "model"), "--prompt", "{} film"]
        monkeypatch.setattr("sys.argv", [EXAMPLE.name, *given, "--words", *words])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_class_is_as_likely_as_its_word_after_the_prompt(run, tmp_path, capsys, kind):
    model = save_language_model(tmp_path / "model", kind)
    places = [WORDS.index(word) for word in CLASSES]
    expected = []
    for text in TEXTS:
        tokens = torch.tensor([[WORDS.index(word) for word in f"{text} film".split()]])
        with torch.no_grad():
            expected.append(model(tokens).logits[0, -1, places].softmax(-1))
    expected = torch.stack(expected)
    aligned = expected / expected.mean(0)
    labels = ["abc"[kind] for kind in aligned.argmax(1).tolist()]
    assert len(set(labels)) == 3
    labels[0] = "abc"[("abc".index(labels[0]) + 1) % 3]
    rows = run(list(zip(TEXTS, labels, strict=True)))
    assert [row["text"] for row in rows] == TEXTS
    torch.testing.assert_close(torch.tensor([row["label"] for row in rows]), expected, atol=1e-5, rtol=0)
    assert capsys.readouterr().out.splitlines()[-1] == "88.9% of 9 guesses are right."


def test_words_that_cannot_be_told_apart_are_refused(run, tmp_path):
    save_language_model(tmp_path / "model", "gpt2")
    with pytest.raises(ValueError, match="two begin with the same token"):
        run([[text] for text in TEXTS], words=["good", "bad", "good"], header=["text"])
