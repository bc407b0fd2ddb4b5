"""Train a reward model with TRL on pairs of reviews, without mixup and with it.

    pip install trl
    python examples/reward_model.py --output_dir outputs/reward

A positive review is preferred to a negative one. The chosen and the rejected text of a pair are mixed with those of one
other pair, and the loss stays TRL's. Any field of TRL's RewardConfig may follow.
"""

import sys
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser, set_seed
from trl import RewardConfig, RewardTrainer

from hf_mixup import MixupMixin
from hf_mixup.cli.train import load_dataset, model_path

# Four minutes on two cores; the command line wins.
DEFAULTS = {
    "output_dir": "outputs/reward",
    "max_steps": 60,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 32,
    "max_length": 64,
    "gradient_checkpointing": "false",
    "bf16": "false",
    "save_strategy": "no",
    "report_to": "none",
}


@dataclass
class ExampleArguments:
    """The encoder, the pairs, and what is mixed."""

    model_name_or_path: str = field(default="demo:minilm", metadata={"help": "A sequence classifier or an encoder."})
    pairs: int = field(default=240, metadata={"help": "Pairs of reviews to train on; as many again are held out."})
    mixup: str = field(default="fixed", metadata={"help": "A recipe, or a YAML file."})


class MixedRewardTrainer(MixupMixin, RewardTrainer):
    """TRL's trainer, mixed."""


def preferences(split: Dataset, count: int) -> Dataset:
    """Pairs of a positive and a negative review."""
    texts = {label: [row["text"] for row in split if row["label"] == label][:count] for label in (0, 1)}
    return Dataset.from_dict({"chosen": texts[1], "rejected": texts[0]})


def main() -> None:
    parser = HfArgumentParser([ExampleArguments, RewardConfig])
    given = [word for name, value in DEFAULTS.items() for word in (f"--{name}", str(value))]
    example, args = parser.parse_args_into_dataclasses([*given, *sys.argv[1:]])
    reviews = load_dataset("demo:rotten_tomatoes")
    train, test = preferences(reviews["train"], example.pairs), preferences(reviews["test"], example.pairs)
    name = example.model_name_or_path
    path = model_path(name) if name.startswith("demo:") else name
    tokenizer = AutoTokenizer.from_pretrained(path)
    # TRL ends each text with it, and encoders have none.
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token or tokenizer.pad_token
    for mixup in (None, example.mixup):
        set_seed(args.seed)
        trainer = MixedRewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(path, num_labels=1),
            args=args,
            train_dataset=train,
            eval_dataset=test,
            processing_class=tokenizer,
            mixup=mixup,
            rows_per_example=2,
        )
        trainer.train()
        metrics = trainer.evaluate()
        print(f"mixup={mixup}: accuracy {metrics['eval_accuracy']:.3f}, loss {metrics['eval_loss']:.3f}")


if __name__ == "__main__":
    main()
