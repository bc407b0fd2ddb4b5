"""Fine-tune a token classifier with mixup: transformers' run_ner.py, short, with `MixupTrainer` instead of `Trainer`.

    pip install "hf_mixup[demo]"
    python examples/token_classification.py train.conll dev.conll --output_dir outputs/entities

A line of a CoNLL file holds a token, a tab or a blank, and its tag; a blank line ends a text. `--mixup none` is the run
to compare with. Other recipes for tokens: tmix, intra_lada, seq_mix.
"""

import re
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from itertools import pairwise
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    TrainingArguments,
    set_seed,
)

from hf_mixup import MixupTrainer
from hf_mixup.cli.demo import model_path
from hf_mixup.evaluation import compute_metrics_for


def parse_args():
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("train_file", help="a CoNLL file")
    parser.add_argument("validation_file", help="a CoNLL file")
    parser.add_argument("--model", default="demo:minilm", help="hub name or folder, with a fast tokenizer")
    parser.add_argument("--mixup", default="default", help="a recipe, a YAML file, or none")
    parser.add_argument("--epochs", type=float, default=3, help="how often each text is trained on")
    parser.add_argument("--output_dir", default="outputs/token_classification", help="the model is saved here")
    return parser.parse_args()


def read_conll(path: str) -> Dataset:
    texts = re.split(r"\n\s*\n", Path(path).read_text(encoding="utf-8").strip())
    pairs = [[line.split() for line in text.split("\n")] for text in texts]
    return Dataset.from_list([{"tokens": [p[0] for p in text], "tags": [p[-1] for p in text]} for text in pairs])


def main() -> None:
    options = parse_args()
    set_seed(0)
    train, validation = read_conll(options.train_file), read_conll(options.validation_file)
    tags = sorted({tag for row in train["tags"] for tag in row})
    path = model_path(options.model) if options.model.startswith("demo:") else options.model
    tokenizer = AutoTokenizer.from_pretrained(path)
    names = {"id2label": dict(enumerate(tags)), "label2id": {tag: number for number, tag in enumerate(tags)}}
    model = AutoModelForTokenClassification.from_pretrained(path, num_labels=len(tags), **names)

    def encode(rows):
        encoded = tokenizer(rows["tokens"], is_split_into_words=True, truncation=True, max_length=128)
        encoded["labels"] = [
            # The first sub-word of a word has its tag; the others, and special tokens, have none.
            [-100 if word in (None, before) else tags.index(own[word]) for before, word in pairwise([None, *words])]
            for own, words in zip(rows["tags"], map(encoded.word_ids, range(len(rows["tags"]))), strict=True)
        ]
        return encoded

    trainer = MixupTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-4,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
        ),
        mixup=options.mixup,
        train_dataset=train.map(encode, batched=True, remove_columns=train.column_names),
        eval_dataset=validation.map(encode, batched=True, remove_columns=train.column_names),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
        compute_metrics=compute_metrics_for("token_classification", tags),
    )
    trainer.train()
    print(trainer.evaluate())
    trainer.save_model()


if __name__ == "__main__":
    main()
