"""Tags of words become labels of sub-words, as in transformers' run_ner.py."""

import logging

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from hf_mixup.cli.train.data import TextData
from hf_mixup.cli.train.encoding import encode, inside_tags
from hf_mixup.cli.train.named_classifier import load_tokenizer
from hf_mixup.cli.train.run_fields import DataArguments, ModelArguments
from tests.toy_tags import NAMES

WORDS = [["undoing", "the", "redoings"], ["play", "playing"], ["un", "undo"] * 8, ["doing"]]
TAGS = [[1, 4, 0], [0, 2], [1, 3] * 8, [4]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A WordPiece tokenizer that cuts most words."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "re", "do", "play", "the", "##do", "##ing", "##s"]
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return BertTokenizer.from_pretrained(folder)


def data_of(words=WORDS, tags=TAGS, names=NAMES):
    rows = Dataset.from_dict({"tokens": words, "labels": tags, "group": ["a", "b"] * (len(words) // 2)})
    return TextData({"train": rows}, ["tokens"], "token_classification", names, {})


def arguments(**options):
    return DataArguments(task="tokens", train_file="train.conll", overwrite_cache=True, **options)


def as_run_ner(tokenizer, words, tags, names, data_args):
    """What transformers' example script makes of words and tags, written anew."""
    i_of = {
        index: names.index("I-" + n[2:]) for index, n in enumerate(names) if n[:2] == "B-" and "I-" + n[2:] in names
    }
    cut = {"truncation": True, "max_length": min(data_args.max_seq_length, tokenizer.model_max_length)}
    cut["padding"] = "max_length" if data_args.pad_to_max_length else False
    for row, own in zip(words, tags, strict=True):
        encoded, labels, last = tokenizer(row, is_split_into_words=True, **cut), [], None
        for word in encoded.word_ids():
            if word is None:
                labels.append(-100)
            elif word != last:
                labels.append(own[word])
            else:
                labels.append(i_of.get(own[word], own[word]) if data_args.label_all_tokens else -100)
            last = word
        yield {**encoded, "labels": labels}


@pytest.mark.parametrize("all_tokens", [False, True])
@pytest.mark.parametrize("more", [{}, {"max_seq_length": 8}, {"max_seq_length": 24, "pad_to_max_length": True}])
def test_labels_are_those_of_run_ner(tokenizer, all_tokens, more):
    data_args = arguments(label_all_tokens=all_tokens, **more)
    rows = encode(data_of(), tokenizer, data_args)["train"]
    assert list(rows) == list(as_run_ner(tokenizer, WORDS, TAGS, NAMES, data_args))


def test_by_hand(tokenizer):
    first, whole = (encode(data_of(), tokenizer, arguments(label_all_tokens=every))["train"] for every in (False, True))
    # [CLS] un ##do ##ing the re ##do ##ing ##s [SEP]
    assert first["labels"][0] == [-100, 1, -100, -100, 4, 0, -100, -100, -100, -100]
    assert whole["labels"][0] == [-100, 1, 3, 3, 4, 0, 2, 2, 2, -100]
    assert whole["labels"][1] == [-100, 0, 2, 2, -100]


def test_a_tag_without_its_inside_goes_on_as_it_is():
    assert inside_tags(["B-x", "B-y", "I-x", "O", "noun"]) == [2, 1, 2, 3, 4]
    assert inside_tags(["B", "I", "O"]) == [1, 1, 2] and inside_tags(["noun", "S"]) == [0, 1]
    with pytest.raises(ValueError, match="label_all_tokens=True: needs tags in IOB, and there is 'E-x'"):
        inside_tags(["B-x", "I-x", "O", "E-x"])


def test_groups_stay_and_words_do_not(tokenizer):
    rows = encode(data_of(), tokenizer, arguments(), "group")["train"]
    assert rows.column_names == ["labels", "group", "input_ids", "token_type_ids", "attention_mask"]
    assert rows["group"][:] == [0, 1, 0, 1]


def test_tags_that_are_cut_off_are_counted(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        encode(data_of(), tokenizer, arguments())
        assert not caplog.text
        encode(data_of(), tokenizer, arguments(max_seq_length=8))
    # Of the first text 3 of 3 tags fit into 6 places, of the third 4 of 16.
    assert "train: 12 of 22 tags are left out: their tokens are beyond max_seq_length=8" in caplog.text


def test_a_text_that_is_nothing_to_the_tokenizer_is_left_out(tokenizer, caplog):
    data = data_of([["\u200b"], ["the"], ["do", "\u200d"], ["the"]], [[4], [1], [0, 1], [4]])
    rows = encode(data, tokenizer, arguments())["train"]
    assert rows["labels"][:] == [[-100, 1, -100], [-100, 0, -100], [-100, 4, -100]]
    assert "train: 2 of 5 tags are left out" in caplog.text


# ---- Tokenizers ----


def byte_level():
    """A byte-level BPE, in which a blank is a part of the token after it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=special)
    trained.train_from_iterator(["the play of doing and undoing"] * 9, trainer)
    return trained


def save(kind, folder):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    whole = PreTrainedTokenizerFast(tokenizer_object=byte_level(), **special)
    whole.save_pretrained(folder)
    if kind is not PreTrainedTokenizerFast:
        kind.from_pretrained(folder).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", [RobertaTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast])
def test_words_of_byte_level_tokenizers_begin_with_a_blank(tmp_path, kind):
    folder = save(kind, tmp_path / "bytes")
    tokenizer = load_tokenizer(ModelArguments(model_name_or_path=folder), folder, "tokens")
    words = ["the", "play", "of", "undoing"]

    def ids(which, *text, **options):
        return which(*text, add_special_tokens=False, **options)["input_ids"]

    in_text = ids(AutoTokenizer.from_pretrained(folder), " " + " ".join(words))
    assert ids(tokenizer, words, is_split_into_words=True) == in_text
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert ids(again, words, is_split_into_words=True) == in_text
    of_texts = load_tokenizer(ModelArguments(model_name_or_path=folder), folder, "texts")
    assert ids(of_texts, "the play") == ids(AutoTokenizer.from_pretrained(folder), "the play") != in_text[:2]


def test_a_tokenizer_that_does_not_know_words_is_refused(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    folder = str(tmp_path / "slow")
    with pytest.raises(ValueError, match="tokenizer_name=.*ByT5Tokenizer does not say which word a token is of"):
        load_tokenizer(ModelArguments(model_name_or_path=folder), folder, "tokens")
    load_tokenizer(ModelArguments(model_name_or_path=folder), folder, "texts")
