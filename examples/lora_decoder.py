"""Fine-tune a Llama-type decoder as a text classifier, with LoRA adapters and mixup.

    python examples/lora_decoder.py --model_name_or_path meta-llama/Llama-3.2-1B --bf16 --output_dir outputs/lora

    python examples/lora_decoder.py --site embeddings --output_dir outputs/lora-small

Without a model, a small Llama is made and saved in `base` below the output folder. Its weights are random: it is only
there to see the example run. What is saved is the adapter and the score head; load them with PEFT on the same base
model. Any field of transformers' TrainingArguments may follow.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    LlamaConfig,
    LlamaModel,
    TrainingArguments,
    set_seed,
)

from hf_mixup import MixupConfig, MixupTrainer
from hf_mixup.cli.train import (
    DataArguments,
    ModelArguments,
    build_model,
    encode,
    interruptible,
    load_data,
    model_path,
    one_line_errors,
    report,
)
from hf_mixup.evaluation import compute_metrics_for

# With the small model, less than a minute on two cores; the command line wins.
DEFAULTS = {
    "output_dir": "outputs/lora",
    "num_train_epochs": 1,
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 16,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
    "report_to": "none",
}


@dataclass
class LoraArguments:
    """The decoder, its adapters, and where activations are mixed."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A Llama-type model; a small one is made."})
    site: str = field(default="hidden", metadata={"help": "hidden (after a block) or embeddings."})
    alpha: float = field(default=0.4, metadata={"help": "lambda is drawn from Beta(alpha, alpha)."})
    rank: int = field(default=8, metadata={"help": "Rank of the adapters."})


def small_llama(folder: Path) -> str:
    """An untrained Llama of 2 million parameters with MiniLM's tokenizer, saved once; returns the folder."""
    if (folder / "tokenizer.json").is_file():
        return str(folder)
    tokenizer = AutoTokenizer.from_pretrained(model_path("demo:minilm"))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    LlamaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    with one_line_errors():
        parser = HfArgumentParser((LoraArguments, DataArguments, TrainingArguments), description=__doc__.split("\n")[0])
        parser.set_defaults(**DEFAULTS, dataset_name=None if "--train_file" in sys.argv else "demo:rotten_tomatoes")
        args, data_args, training_args = parser.parse_args_into_dataclasses(sys.argv[1:])
        mixup = MixupConfig(site=args.site, layers=None, alpha=args.alpha, dominant=False, warmup_batches=0)
        set_seed(training_args.seed)
        with training_args.main_process_first(desc="reading the data"):
            path = args.model_name_or_path or small_llama(Path(training_args.output_dir, "base"))
            model_args = ModelArguments(path)
            data = load_data(model_args, data_args, training_args)
        # It also sees to the pad token, without which a decoder cannot tell where a text of a batch ends.
        model, tokenizer = build_model(model_args, data)
        with training_args.main_process_first(desc="tokenising the data"):
            splits = encode(data, tokenizer, data_args)
        lora = LoraConfig(
            task_type="SEQ_CLS",
            r=args.rank,
            lora_alpha=2 * args.rank,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            # The head is new: it is trained as a whole, and saved with the adapters.
            modules_to_save=["score"],
        )
        trainer = MixupTrainer(
            model=get_peft_model(model, lora),
            args=training_args,
            mixup=mixup,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_metrics_for(data.problem_type),
        )

    with interruptible(training_args.output_dir):
        trainer.train()
        trainer.save_model()
        report(trainer, data, splits, mixup)


if __name__ == "__main__":
    main()
