"""A training loop with Accelerate, without Trainer. This file trains with mixup, `accelerate_loop_plain.py` without:

    diff examples/accelerate_loop_plain.py examples/accelerate_loop.py

    accelerate launch --config_file configs/accelerate/multi_gpu.yaml examples/accelerate_loop.py --num_epochs 2

Each epoch is saved in the output folder; `--resume_from outputs/loop/epoch_1` goes on after it.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, HfArgumentParser, get_linear_schedule_with_warmup

from hf_mixup import Mixup
from hf_mixup.cli.train import DataArguments, ModelArguments, build_model, encode, load_splits


@dataclass
class LoopArguments:
    """The training; `batch_size` is that of one process."""

    model_name_or_path: str = "demo:minilm"
    output_dir: str = "outputs/loop"
    resume_from: str | None = None
    num_epochs: int = 1
    batch_size: int = 16
    accumulation_steps: int = 1
    learning_rate: float = 5e-5
    seed: int = 0


def accuracy(model: torch.nn.Module, loader: DataLoader, accelerator: Accelerator) -> float:
    model.eval()
    hits = []
    for batch in loader:
        labels = batch.pop("labels")
        with torch.no_grad():
            predicted = model(**batch).logits.argmax(-1)
        hits.append(accelerator.gather_for_metrics(predicted == labels))
    return torch.cat(hits).float().mean().item()


def main() -> None:
    parser = HfArgumentParser((LoopArguments, DataArguments), description=__doc__.split("\n")[0])
    parser.set_defaults(dataset_name=None if "--train_file" in sys.argv else "demo:rotten_tomatoes")
    args, data_args = parser.parse_args_into_dataclasses()
    accelerator = Accelerator(
        gradient_accumulation_steps=args.accumulation_steps,
        # The order of the examples then depends on seed and epoch alone, also after resuming.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )
    set_seed(args.seed)

    with accelerator.main_process_first():
        data = load_splits(data_args)
    model, tokenizer = build_model(ModelArguments(args.model_name_or_path), data)
    with accelerator.main_process_first():
        splits = encode(data, tokenizer, data_args)
    collate = DataCollatorWithPadding(tokenizer)
    loader = DataLoader(splits["train"], args.batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    held_out = DataLoader(splits["validation"], args.batch_size, collate_fn=collate)

    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate)
    # A step of several processes counts as many for the scheduler, as len(loader) does before prepare.
    steps = args.num_epochs * math.ceil(len(loader) / args.accumulation_steps)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, steps)
    mixup = Mixup(model, "fixed", seed=args.seed, rank=accelerator.process_index)
    model, optimizer, scheduler, loader, held_out = accelerator.prepare(model, optimizer, scheduler, loader, held_out)

    first_epoch = 0
    if args.resume_from:
        accelerator.load_state(args.resume_from)
        mixup.load_state_dict(torch.load(f"{args.resume_from}/mixup_{accelerator.process_index}.pt"))
        first_epoch = int(Path(args.resume_from).name.removeprefix("epoch_"))

    for epoch in range(first_epoch, args.num_epochs):
        loader.set_epoch(epoch)
        model.train()
        for batch in loader:
            labels = batch.pop("labels")
            with accelerator.accumulate(model):
                plan = mixup.draw(batch, labels=labels)
                with mixup.apply(plan, batch):
                    logits = model(**batch).logits
                loss = mixup.loss(logits, labels, plan)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        rate = accuracy(model, held_out, accelerator)
        accelerator.print(f"epoch {epoch + 1}, {accelerator.num_processes} processes: accuracy {rate:.4f}")
        folder = f"{args.output_dir}/epoch_{epoch + 1}"
        accelerator.save_state(folder)
        torch.save(mixup.state_dict(), f"{folder}/mixup_{accelerator.process_index}.pt")

    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output_dir, state_dict=weights)
        tokenizer.save_pretrained(args.output_dir)
    # DDP lets go of the process group before that ends; the other way round gloo was seen to hang (pytorch#56297).
    model, optimizer, scheduler = accelerator.free_memory(model, optimizer, scheduler)
    accelerator.end_training()


if __name__ == "__main__":
    main()
