"""Fine-tune a text classifier with mixup on a hub dataset or on files of your own.

    python examples/run_classification.py \
        --model_name_or_path bert-base-uncased --train_file train.csv --validation_file dev.csv --test_file test.csv \
        --text_column_names sentence1,sentence2 --label_column_name label --mixup tmix --output_dir outputs/bert

    python examples/run_classification.py configs/quickstart.yaml

At the end: a table, and the same in results.json in the output folder. `hf-mixup train` runs the same steps.
"""

import sys

from transformers import DataCollatorWithPadding, set_seed

from hf_mixup import MixupTrainer
from hf_mixup.cli.train import (
    build_model,
    calibrate,
    check_output_dir,
    encode,
    interruptible,
    load_data,
    mixup_errors,
    one_line_errors,
    parse,
    quiet_other_processes,
    report,
    resolve_config,
)
from hf_mixup.evaluation import compute_metrics_for, first_output


def main() -> None:
    with one_line_errors(), mixup_errors():
        model_args, data_args, training_args = parse(sys.argv[1:])
        if data_args.task != "texts":
            raise ValueError(f"task={data_args.task!r}: this script is about texts; `hf-mixup train` is about both.")
        quiet_other_processes(training_args)
        mixup = resolve_config(model_args.mixup)
        checkpoint = check_output_dir(training_args, data_args.overwrite_output_dir)
        set_seed(training_args.seed)

        with training_args.main_process_first(desc="reading the data"):
            data = load_data(model_args, data_args, training_args)
        model, tokenizer = build_model(model_args, data)
        with training_args.main_process_first(desc="tokenising the data"):
            splits = encode(data, tokenizer, data_args, mixup and mixup.group_column)

        trainer = MixupTrainer(
            model=model,
            args=training_args,
            mixup=mixup,
            nonfinite_loss=model_args.nonfinite_loss,
            averaging=model_args.averaging,
            ema_decay=model_args.ema_decay,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_metrics_for(data.problem_type),
            preprocess_logits_for_metrics=first_output,
        )

    with interruptible(training_args.output_dir):
        trainer.train(resume_from_checkpoint=checkpoint)
        if model_args.fit_temperature:
            calibrate(trainer, splits["validation"], data.problem_type)
        trainer.save_model()
        trainer.save_state()
        report(trainer, data, splits, mixup)


if __name__ == "__main__":
    main()
