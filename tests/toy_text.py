"""A toy encoder on disk and toy reviews, for tests of the training pipeline."""

import csv
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

GOOD = ("fine", "great", "lovely", "warm")
BAD = ("awful", "dull", "poor", "weak")
NEUTRAL = ("a", "film", "plot", "the", "was", "with")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *NEUTRAL)


def save_toy_model(folder, **special_tokens):
    """A BERT of two small layers with a word-level tokenizer; returns the folder as a string."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special_tokens = special_tokens or {"pad_token": "[PAD]"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special_tokens,
    )
    fast.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def reviews(count, seed=0):
    """Pairs (text, is_good)."""
    generator = random.Random(seed)
    for number in range(count):
        words = generator.choices(GOOD if number % 2 else BAD, k=2) + generator.choices(NEUTRAL, k=4)
        generator.shuffle(words)
        yield " ".join(words), bool(number % 2)


def write_csv(path, header, rows, delimiter=","):
    """Returns the path as a string."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return str(path)


def write_reviews(path, count=40, names=("bad", "good"), seed=0):
    """A CSV of toy reviews with columns text and label; returns the path as a string."""
    return write_csv(path, ["text", "label"], [(text, names[good]) for text, good in reviews(count, seed)])
