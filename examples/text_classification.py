"""Fine-tune a text classifier with mixup: a plain transformers script, with `MixupTrainer` in the place of `Trainer`.

    python examples/text_classification.py                                     # model and texts from the hub
    python examples/text_classification.py --model my_model --dataset my_data  # folders, no network needed

A folder of texts holds train.csv, validation.csv and test.csv (or .json, .parquet), with columns text and label.
`--mixup none` is the run to compare with: the same trainer, without mixup. Any recipe may stand there, such as tmix.
"""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

import numpy as np
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction, TrainingArguments, set_seed

from hf_mixup import MixupTrainer


def parse_args():
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="hub name or folder")
    parser.add_argument("--dataset", default="cornell-movie-review-data/rotten_tomatoes", help="hub name or folder")
    parser.add_argument("--mixup", default="default", help="a recipe, a YAML file, or none")
    parser.add_argument("--epochs", type=float, default=2, help="how often each text is trained on")
    parser.add_argument("--output_dir", default="outputs/text_classification", help="the model is saved here")
    return parser.parse_args()


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main() -> None:
    options = parse_args()
    set_seed(0)
    texts = load_dataset(options.dataset)
    classes = sorted(texts["train"].unique("label"))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(classes), id2label=dict(enumerate(map(str, classes)))
    )

    def encode(rows):
        labels = [classes.index(label) for label in rows["label"]]
        return {**tokenizer(rows["text"], truncation=True, max_length=128), "labels": labels}

    data = texts.map(encode, batched=True, remove_columns=texts["train"].column_names)
    trainer = MixupTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
        ),
        mixup=options.mixup,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    trainer.train()
    print(trainer.evaluate(data["test"], metric_key_prefix="test"))
    trainer.save_model()


if __name__ == "__main__":
    main()
