"""Every piece of code in docs/own_trainer.md runs, and is as short as the page says."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast, Trainer, default_data_collator

from hf_mixup import Mixup, MixupMixin, MixupModel, MixupTrainer
from tests.toy_runs import arguments, examples, steady_bert
from tests.zoo import VOCAB

PAGE = (Path(__file__).parents[1] / "docs/own_trainer.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"\n## ([^\n]+)\n+```python\n(.*?)```", PAGE, flags=re.DOTALL))
MOST_LINES = 10


class WeightedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 5.0]))
        return (loss, outputs) if return_outputs else loss


def rows(count=16):
    return [{name: value[:4] if name != "labels" else value for name, value in row.items()} for row in examples(count)]


@pytest.fixture
def names(tmp_path):
    """What the page assumes, and what it imports in other sections."""
    given = {"model": steady_bert(), "args": arguments(tmp_path, report_to=[]), "train": rows(), "torch": torch}
    given |= {
        "teacher": steady_bert(),
        "Mixup": Mixup,
        "MixupMixin": MixupMixin,
        "MixupModel": MixupModel,
        "MixupTrainer": MixupTrainer,
    }
    batch = default_data_collator(rows(8))
    return given | {"WeightedTrainer": WeightedTrainer, "labels": batch.pop("labels"), "batch": batch}


def run(section, names):
    code = SECTIONS[section]
    assert len([line for line in code.splitlines() if line]) <= MOST_LINES
    exec(code, names)
    return names


def tokenizer():
    words = {"<pad>": 0, "<unk>": 1, "<eos>": 2} | {f"w{number}": number for number in range(3, VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def texts(count, step):
    return [f"w{3 + number % 50} w{3 + number * step % 50}" for number in range(count)]


def trained(trainer, steps=2):
    trainer.train()
    assert trainer.mixup.mixed >= steps
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == steps and torch.tensor(losses).isfinite().all()
    return losses


def test_the_table_leads_to_every_section():
    anchors = set(re.findall(r"\]\(#([\w-]+)\)", PAGE))
    assert anchors == {name.lower().replace(" ", "-") for name in SECTIONS}


@pytest.mark.parametrize("section", ["A loss function", "Class weights", "A teacher", "A trainer of your own"])
def test_a_trainer_trains(names, section):
    trained(run(section, names)["trainer"])


def test_a_module_of_your_own_trains(names):
    config = BertConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_labels=3)
    trainer = run("A module of your own", names | {"AutoModel": AutoModel, "config": config, "F": F})["trainer"]
    trained(trainer)
    assert trainer.evaluate(rows(8))["eval_loss"] > 0


def test_a_reward_model_trains(names, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed: it is in the extra trainers")
    args = trl.RewardConfig(str(tmp_path), max_steps=2, logging_steps=1, report_to=[], use_cpu=True, bf16=False)
    train = Dataset.from_dict({"chosen": texts(16, 7), "rejected": texts(16, 11)})
    names |= {"model": steady_bert(num_labels=1), "args": args, "train": train, "tokenizer": tokenizer()}
    trained(run("A reward model", names)["trainer"])


def cross_encoder(folder):
    reason = "sentence-transformers is not installed: it is in the extra trainers"
    CrossEncoder = pytest.importorskip("sentence_transformers.cross_encoder", reason=reason).CrossEncoder
    steady_bert(num_labels=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return CrossEncoder(str(folder), num_labels=1, device="cpu")


def test_a_cross_encoder_trains_as_its_trainer_does(names, tmp_path):
    model = cross_encoder(tmp_path / "model")
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

    def given():
        model = cross_encoder(tmp_path / "model")
        return {"model": model, "loss": losses.BinaryCrossEntropyLoss(model), "args": args, "train_dataset": train}

    args = CrossEncoderTrainingArguments(str(tmp_path), max_steps=2, logging_steps=1, report_to=[], use_cpu=True)
    train = Dataset.from_dict({"query": texts(16, 7), "text": texts(16, 11), "label": [n % 2 for n in range(16)]})
    names |= {"model": model, "args": args, "train": train, "loss": losses.BinaryCrossEntropyLoss(model)}
    kind = run("A cross-encoder", names)["MixedCrossEncoderTrainer"]
    mixed = trained(names["trainer"])
    plain = CrossEncoderTrainer(**given())
    plain.train()
    expected = [entry["loss"] for entry in plain.state.log_history if "loss" in entry]
    assert mixed != expected
    assert trained(kind(**given(), mixup={"lam": 1.0, "warmup_batches": 0})) == expected
    assert trained(kind(**given(), mixup="sent_mixup")) != expected
    off = kind(**given(), mixup=None)
    off.train()
    assert [entry["loss"] for entry in off.state.log_history if "loss" in entry] == expected


def test_a_reward_trainer_at_lambda_1_is_trls(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed: it is in the extra trainers")
    train = Dataset.from_dict({"chosen": texts(16, 7), "rejected": texts(16, 11)})

    class Mixed(MixupMixin, trl.RewardTrainer):
        pass

    def losses_of(kind, **options):
        args = trl.RewardConfig(str(tmp_path), max_steps=2, logging_steps=1, report_to=[], use_cpu=True, bf16=False)
        model = steady_bert(num_labels=1)
        trainer = kind(model=model, args=args, train_dataset=train, processing_class=tokenizer(), **options)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected = losses_of(trl.RewardTrainer)
    assert losses_of(Mixed, mixup=None) == expected
    assert losses_of(Mixed, mixup={"lam": 1.0, "warmup_batches": 0}, rows_per_example=2) == expected
    assert losses_of(Mixed, mixup={"lam": 0.6, "warmup_batches": 0}, rows_per_example=2) != expected


def test_a_loop_trains(names):
    loader = DataLoader(rows(), batch_size=8, collate_fn=default_data_collator)
    run("A loop", names | {"loader": loader, "criterion": torch.nn.CrossEntropyLoss()})
    assert all(parameter.grad is not None for parameter in names["model"].bert.encoder.parameters())


def test_pairs_and_label_sets_give_a_loss(names):
    assert run("Pairs of rows", names | {"model": steady_bert(num_labels=1)})["loss"].requires_grad
    sets = {"model": steady_bert(num_labels=5), "topics": names["labels"], "moods": torch.ones(8, 2)}
    assert run("Several label sets", names | sets)["loss"].requires_grad


def test_lightning_trains(names, tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed: it is in the extra trainers")
    module = run("Lightning", names | {"lightning": lightning})["Classifier"](steady_bert())
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)
    loader = DataLoader(rows(), batch_size=8, collate_fn=default_data_collator)
    lightning.Trainer(max_steps=2, accelerator="cpu", logger=False, default_root_dir=tmp_path).fit(module, loader)
    assert module.model.mixup.mixed == 2


def test_a_search_trains(names):
    trainer = MixupTrainer(
        model_init=lambda: steady_bert(), args=names["args"], train_dataset=rows(), eval_dataset=rows(8)
    )
    assert run("A search", names | {"trainer": trainer})["best"].hyperparameters["mixup"]
