"""Train a small Wav2Vec2 from scratch, with mixup, on synthetic tones or on recordings of your own.

    python examples/run_audio_classification.py --mixup manifold --output_dir outputs/tones

    python examples/run_audio_classification.py --mixup none --output_dir outputs/tones-plain

Without `--recordings FOLDER` the sounds are made here, not recorded: noisy tones of different lengths whose pitch
rises, falls, stays, rises and falls, or falls and rises. Any field of transformers' TrainingArguments may follow. At
the end: a table of the metrics on the fifth of the sounds that is held out.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.io import wavfile
from sklearn.model_selection import train_test_split
from transformers import (
    HfArgumentParser,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    set_seed,
)

from hf_mixup import MixupTrainer
from hf_mixup.evaluation import compute_metrics_for

RATE = 8000
# A training of about a minute on two cores; the command line wins.
DEFAULTS = {
    "output_dir": "outputs/tones",
    "num_train_epochs": 12,
    "learning_rate": 1e-3,
    "warmup_steps": 100,
    "weight_decay": 0.05,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "logging_steps": 50,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "report_to": "none",
}
# How the pitch moves, from 0 to 1, as time goes from 0 to 1.
SHAPES = {
    "rising": lambda time: time,
    "falling": lambda time: 1 - time,
    "steady": lambda time: 0.5 + 0 * time,
    "peak": lambda time: 1 - abs(2 * time - 1),
    "valley": lambda time: abs(2 * time - 1),
}


@dataclass
class SoundArguments:
    """Which sounds, and which mixup."""

    recordings: str | None = field(
        default=None,
        metadata={"help": "A folder of mono 8 kHz .wav files whose names start with the class, as 7_anna_12.wav."},
    )
    mixup: str = field(
        default="manifold",
        metadata={"help": "A recipe (manifold, default, sent_mixup, input_mixup, ...), a YAML path or none."},
    )
    attention_mask: bool = field(
        default=True,
        metadata={"help": "Tell the model where a sound ends; false: zeros follow it, which input_mixup needs."},
    )


def tones(count: int = 2000, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """A quarter to half a second of a tone whose pitch moves by half an octave to two, in noise."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        name = list(SHAPES)[number % len(SHAPES)]
        time = np.linspace(0, 1, int(generator.uniform(RATE / 4, RATE / 2)))
        low, octaves = generator.uniform(200, 400), generator.uniform(0.5, 2)
        pitch = low * 2 ** (octaves * SHAPES[name](time))
        tone = np.sin(2 * np.pi * (np.cumsum(pitch) / RATE + generator.uniform()))
        yield name, tone + generator.normal(size=len(time))


def read_recordings(folder: str) -> Iterator[tuple[str, np.ndarray]]:
    """Raises `ValueError` for a folder without recordings, or one that is not mono or of another rate."""
    paths = sorted(Path(folder).glob("*.wav"))
    if not paths:
        raise ValueError(f"recordings={folder!r}: no .wav files there.")
    for path in paths:
        rate, sound = wavfile.read(path)
        if rate != RATE or sound.ndim != 1:
            raise ValueError(f"recordings: {path} has rate {rate} and shape {sound.shape}; expected mono, {RATE} Hz.")
        yield path.name.split("_")[0], sound


def encode(sounds: list[tuple[str, np.ndarray]], names: list[str], extractor: Wav2Vec2FeatureExtractor) -> list[dict]:
    """Input values of mean 0 and variance 1, of at most a second, with their labels."""
    values = extractor([sound[:RATE].astype(np.float32) for _, sound in sounds], sampling_rate=RATE).input_values
    rows = zip(sounds, values, strict=True)
    return [{"input_values": value, "labels": names.index(name)} for (name, _), value in rows]


def build_model(names: list[str]) -> Wav2Vec2ForSequenceClassification:
    """A frame every 20 ms; 0.4 million parameters."""
    config = Wav2Vec2Config(
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
        conv_dim=(32, 64, 96),
        conv_kernel=(20, 8, 8),
        conv_stride=(10, 4, 4),
        feat_extract_norm="layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=192,
        classifier_proj_size=96,
        # Mixup needs every block to run.
        layerdrop=0.0,
        # Sounds as short as these are not to be blanked out in part.
        mask_time_prob=0.0,
    )
    return Wav2Vec2ForSequenceClassification(config)


def main() -> None:
    parser = HfArgumentParser((SoundArguments, TrainingArguments), description=__doc__.split("\n")[0])
    parser.set_defaults(**DEFAULTS)
    sound_args, training_args = parser.parse_args_into_dataclasses(sys.argv[1:])
    set_seed(training_args.seed)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=sound_args.attention_mask)
    sounds = list(read_recordings(sound_args.recordings) if sound_args.recordings else tones())
    names = sorted({name for name, _ in sounds})
    rows = encode(sounds, names, extractor)
    train, test = train_test_split(rows, test_size=0.2, stratify=[name for name, _ in sounds], random_state=0)
    trainer = MixupTrainer(
        model=build_model(names),
        args=training_args,
        mixup=sound_args.mixup,
        train_dataset=train,
        eval_dataset=test,
        processing_class=extractor,
        compute_metrics=compute_metrics_for("single_label_classification"),
    )
    trainer.train()
    trainer.save_model()
    trainer.log_metrics("test", trainer.evaluate(metric_key_prefix="test"))


if __name__ == "__main__":
    main()
