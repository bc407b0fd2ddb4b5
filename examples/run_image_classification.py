"""Train a small vision transformer from scratch, with mixup, on the handwritten digits that scikit-learn brings.

    python examples/run_image_classification.py --mixup input_mixup --output_dir outputs/digits

    python examples/run_image_classification.py --mixup none --output_dir outputs/digits-plain

Any field of transformers' TrainingArguments may follow. At the end: a table of the metrics on the held-out images.
"""

import sys
from dataclasses import dataclass, field

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import HfArgumentParser, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_mixup import MixupTrainer
from hf_mixup.evaluation import compute_metrics_for

# A training of half a minute on two cores; the command line wins.
DEFAULTS = {
    "output_dir": "outputs/digits",
    "num_train_epochs": 30,
    "learning_rate": 1e-3,
    "warmup_steps": 100,
    "weight_decay": 0.05,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 256,
    "logging_steps": 100,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "report_to": "none",
}


@dataclass
class MixupArguments:
    """Which mixup."""

    mixup: str = field(
        default="input_mixup",
        metadata={"help": "A recipe (input_mixup, default, manifold, sent_mixup, ...), a YAML path or none."},
    )


def load_images() -> dict[str, list[dict]]:
    """8 x 8 pixels from -1 to 1 in one channel: 1,297 images to train on and 500 held out."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]
    train, test = train_test_split(rows, test_size=500, stratify=labels, random_state=0)
    return {"train": train, "test": test}


def build_model() -> ViTForImageClassification:
    """Sixteen patches an image; 0.3 million parameters."""
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
    )
    return ViTForImageClassification(config)


def main() -> None:
    parser = HfArgumentParser((MixupArguments, TrainingArguments), description=__doc__.split("\n")[0])
    parser.set_defaults(**DEFAULTS)
    mixup_args, training_args = parser.parse_args_into_dataclasses(sys.argv[1:])
    set_seed(training_args.seed)
    images = load_images()
    trainer = MixupTrainer(
        model=build_model(),
        args=training_args,
        mixup=mixup_args.mixup,
        train_dataset=images["train"],
        eval_dataset=images["test"],
        compute_metrics=compute_metrics_for("single_label_classification"),
    )
    trainer.train()
    trainer.save_model()
    trainer.log_metrics("test", trainer.evaluate(metric_key_prefix="test"))


if __name__ == "__main__":
    main()
