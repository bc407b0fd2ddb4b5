import json
import logging
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from hf_mixup.cli.main import main
from hf_mixup.cli.train.tokenizer_checks import check_tokenizer, longest_text
from tests.toy_text import WORDS, save_toy_model, write_csv

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def toy(tmp_path):
    folder = save_toy_model(tmp_path / "toy")
    return AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder)


def test_texts_of_known_tokens_pass(toy, caplog):
    check_tokenizer("toy", *toy, [["a fine film"], ["the plot"]])
    assert not caplog.text


def test_unknown_words_are_refused(toy):
    with pytest.raises(ValueError, match="tokenizer_name='toy': 67% of the tokens of the training texts are unknown"):
        check_tokenizer("toy", *toy, [["ein guter film"] * 3])


def test_texts_without_tokens_are_refused(toy):
    with pytest.raises(ValueError, match="2 of 3 texts have no tokens at all"):
        toy[0].backend_tokenizer.post_processor = None
        check_tokenizer("toy", *toy, [["\u2028", "\u2028", "a"]])


def test_some_unknown_words_are_said(toy, caplog):
    with caplog.at_level(logging.WARNING):
        check_tokenizer("toy", *toy, [["a fine film", "a fine day"]])
    assert "17% of the tokens of the training texts are unknown" in caplog.text


def test_tokens_beyond_the_embedding_are_refused_wherever_they_are(toy):
    model = BertModel(BertConfig(vocab_size=len(WORDS) - 1, **TINY))
    texts = ["a fine film"] * 3000
    check_tokenizer("toy", toy[0], model, [texts])
    with pytest.raises(ValueError, match=rf"has token {len(WORDS) - 1} \('with'\), but the model has {len(WORDS) - 1}"):
        check_tokenizer("toy", toy[0], model, [[*texts, "a film with"]])


def test_the_longest_text_is_that_of_the_positions():
    table = {"max_position_embeddings": 48, "vocab_size": 20}
    assert longest_text(BertModel(BertConfig(**TINY, **table))) == 48
    assert longest_text(RobertaModel(RobertaConfig(**TINY, **table, pad_token_id=1))) == 46
    assert (
        longest_text(T5Model(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=20))) is None
    )


def test_a_run_cuts_texts_at_the_positions_of_the_model(toy_config, tmp_path):
    config = toy_config(
        train_file=write_csv(tmp_path / "l.csv", ["text", "label"], [("a " * 99, "bad"), ("a", "good")] * 9)
    )
    settings = Path(tmp_path, "toy", "tokenizer_config.json")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": int(1e30)}))
    assert main(["train", config]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 32


def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_trained(toy_config, tmp_path, capsys):
    config = toy_config()
    shutil.copytree(tmp_path / "toy", tmp_path / "bare")
    for file in (tmp_path / "bare").glob("token*"):
        file.unlink()
    assert main(["train", config, "--model_name_or_path", str(tmp_path / "bare")]) == 2
    assert "tokenizer_name=" in capsys.readouterr().err and not (tmp_path / "out").exists()
