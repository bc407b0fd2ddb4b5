"""Train a cross-encoder with sentence-transformers on headlines and articles, without mixup and with it.

    pip install sentence-transformers
    python examples/cross_encoder.py --output_dir outputs/cross_encoder

Which article belongs to a headline? The others are of the same topic. The loss stays that of sentence-transformers, and
so does the trainer. Any field of its CrossEncoderTrainingArguments may follow.
"""

import sys
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from torch.nn import functional as F
from transformers import HfArgumentParser, set_seed

from hf_mixup import MixupMixin
from hf_mixup.cli.train import load_dataset, model_path

# Four minutes on two cores; the command line wins.
DEFAULTS = {
    "output_dir": "outputs/cross_encoder",
    "max_steps": 60,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 16,
    "save_strategy": "no",
    "report_to": "none",
}


@dataclass
class ExampleArguments:
    """The encoder, the pairs, and what is mixed."""

    model_name_or_path: str = field(default="demo:minilm", metadata={"help": "An encoder or a cross-encoder."})
    pairs: int = field(default=240, metadata={"help": "Pairs to train on; half as many are held out."})
    max_length: int = field(default=64, metadata={"help": "Tokens of a headline and its article, at most."})
    mixup: str = field(default="fixed", metadata={"help": "A recipe, or a YAML file."})


class MixedCrossEncoderTrainer(MixupMixin, CrossEncoderTrainer):
    """The trainer of sentence-transformers, mixed."""


def headlines(split: Dataset, count: int) -> Dataset:
    """Headlines, each with its own article (label 1) and with the next of the same topic (label 0), by turns."""
    rows = []
    for topic in sorted(set(split["label"])):
        articles = [row["text"].strip().partition("\n") for row in split if row["label"] == topic]
        for number, (headline, _, _) in enumerate(articles):
            label = number % 2
            rows.append({"headline": headline, "article": articles[number - 1 + label][2].strip(), "label": label})
    return Dataset.from_list(rows).shuffle(seed=0).select(range(min(count, len(rows))))


def evaluate(model: CrossEncoder, test: Dataset) -> str:
    """Accuracy and negative log-likelihood."""
    scores = torch.tensor(
        model.predict(list(zip(test["headline"], test["article"], strict=True)), activation_fn=torch.nn.Identity())
    )
    labels = torch.tensor(test["label"]).float()
    accuracy = ((scores > 0) == (labels > 0)).float().mean()
    return f"accuracy {accuracy:.3f}, NLL {F.binary_cross_entropy_with_logits(scores, labels):.3f}"


def main() -> None:
    parser = HfArgumentParser([ExampleArguments, CrossEncoderTrainingArguments])
    given = [word for name, value in DEFAULTS.items() for word in (f"--{name}", str(value))]
    example, args = parser.parse_args_into_dataclasses([*given, *sys.argv[1:]])
    news = load_dataset("demo:bbc_news")
    train, test = headlines(news["train"], example.pairs), headlines(news["test"], example.pairs // 2)
    name = example.model_name_or_path
    path = model_path(name) if name.startswith("demo:") else name
    for mixup in (None, example.mixup):
        set_seed(args.seed)
        model = CrossEncoder(path, num_labels=1, max_length=example.max_length, device="cpu" if args.use_cpu else None)
        loss = BinaryCrossEntropyLoss(model)
        trainer = MixedCrossEncoderTrainer(model=model, args=args, train_dataset=train, loss=loss, mixup=mixup)
        trainer.train()
        print(f"mixup={mixup}: {evaluate(model, test)}")


if __name__ == "__main__":
    main()
