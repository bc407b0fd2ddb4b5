"""The fields of a training run: of its model and of its data."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_mixup.cli.train.delimited import DELIMITERS
from hf_mixup.cli.train.files import FileFormat
from hf_mixup.config.checks import choice, count
from hf_mixup.training.averaging import check_averaging
from hf_mixup.training.loss_watch import POLICIES

COUNTS = (*("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples", "max_unlabeled_samples"),)
TEXTS, TOKENS = "texts", "tokens"
# Fields that only one task has, by the task.
ONLY = {
    TEXTS: (
        *("text_column_names", "label_delimiter", "do_regression", "csv_delimiter", "csv_quoting"),
        *("unlabeled_file", "unlabeled_split_name", "max_unlabeled_samples"),
    ),
    TOKENS: ("token_column_name", "label_all_tokens"),
}


def _help(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which model is fine-tuned, and with which mixup. The help of each field says what it means."""

    model_name_or_path: str | None = _help(None, "A folder, a hub name, or demo:minilm (needs the demo extra).")
    config_name: str | None = _help(None, "Folder or hub name of the config, if not the model's.")
    tokenizer_name: str | None = _help(None, "Folder or hub name of the tokenizer, if not the model's.")
    cache_dir: str | None = _help(None, "Folder for downloaded models and for the data as read.")
    model_revision: str = _help("main", "Branch, tag or commit of a hub model.")
    token: str | None = _help(None, "Token for private hub repositories.")
    trust_remote_code: bool = _help(False, "Run model code that comes from the hub.")
    ignore_mismatched_sizes: bool = _help(False, "Give a classifier whose head does not fit the labels a new one.")
    attn_implementation: str | None = _help(None, "eager, sdpa, flex_attention or a flash kernel; by default its own.")
    prior_bias: bool = _help(False, "Start the bias of a new head from how frequent the labels are, or their mean.")
    nonfinite_loss: str = _help("warn", "At the first training loss that is not finite: warn, stop or ignore.")
    averaging: str | None = _help(None, "ema: evaluate and save the moving average of the weights. none: no average.")
    ema_decay: float | None = _help(None, "Largest decay of that average; 0.999 by default.")
    fit_temperature: bool = _help(False, "Fit a temperature on the validation rows after training, and keep it.")
    baseline: bool = _help(False, "Train once more, with mixup off and labelled rows only, and show both.")
    mixup: dict[str, Any] | str | None = _help(
        "default", "A recipe, a YAML path or none; in a YAML file also a mapping of MixupConfig fields."
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path is missing: a folder, a hub name, or demo:minilm.")
        choice(*POLICIES)("nonfinite_loss", self.nonfinite_loss)
        check_averaging(self.averaging, self.ema_decay)


@dataclass
class DataArguments:
    """What is trained and evaluated on. The help of each field says what it means."""

    task: str = _help(TEXTS, "texts: classes or a score of each text; tokens: a tag of each token, as in NER.")
    dataset_name: str | None = _help(None, "A hub name, a folder, or demo:rotten_tomatoes, demo:bbc_news (demo extra).")
    dataset_config_name: str | None = _help(None, "Configuration of the dataset.")
    train_file: str | None = _help(None, "CSV, TSV, JSON, JSONL or Parquet file to train on; CoNLL with tokens.")
    validation_file: str | None = _help(None, "File for evaluation during training; else a tenth is held out.")
    test_file: str | None = _help(None, "File for the evaluation at the end; else the validation data serve.")
    unlabeled_file: str | None = _help(None, "File of texts without labels, whose classes are guessed and learned.")
    train_split_name: str | None = _help(None, "Split of dataset_name to train on; train by default.")
    validation_split_name: str | None = _help(None, "Split of dataset_name; validation by default, if there is one.")
    test_split_name: str | None = _help(None, "Split of dataset_name; test by default, if there is one.")
    unlabeled_split_name: str | None = _help(None, "Split of dataset_name with texts without labels; none by default.")
    text_column_names: str | None = _help(
        None, "Text column, or two for pairs: left,right or a YAML list; text by default."
    )
    token_column_name: str | None = _help(None, "Column of lists of tokens; tokens or words by default.")
    label_column_name: str | None = _help(None, "Label column; label or labels by default, of tokens ner_tags or tags.")
    label_all_tokens: bool = _help(False, "Give the tag of a token to all of its sub-words, not to the first alone.")
    label_delimiter: str | None = _help(None, "What separates several class names in one cell (multi-label).")
    csv_delimiter: str | None = _help(None, "What separates the cells of CSV files: , by default, a tab in .tsv.")
    csv_quoting: str | None = _help(
        None, 'minimal: cells may stand in quotation marks; none: these are text; backslash: \\" stands for one.'
    )
    encoding: str | None = _help(None, "Encoding of CSV and JSON files, such as cp1252 or utf-16; UTF-8 by default.")
    do_regression: bool | None = _help(None, "Labels are numbers to predict; by default if some are decimal.")
    max_seq_length: int = _help(128, "Longer texts are truncated to this many tokens.")
    pad_to_max_length: bool = _help(False, "Pad to max_seq_length, not to the longest text of a batch.")
    max_train_samples: int | None = _help(None, "Train on the first n rows only.")
    max_eval_samples: int | None = _help(None, "Validate on the first n rows only.")
    max_predict_samples: int | None = _help(None, "Test on the first n rows only.")
    max_unlabeled_samples: int | None = _help(None, "Guess the classes of the first n rows without labels only.")
    shuffle_train_dataset: bool = _help(False, "Shuffle the training rows before max_train_samples are taken.")
    shuffle_seed: int = _help(42, "Seed of that shuffle, and of the rows that are held out.")
    overwrite_cache: bool = _help(False, "Tokenise again, even if the tokenised data are cached.")
    overwrite_output_dir: bool = _help(False, "Allow an output_dir that is not empty.")

    def __post_init__(self) -> None:
        if (self.dataset_name is None) == (self.train_file is None):
            raise ValueError("dataset_name, train_file: give one of the two.")
        if self.dataset_name is not None and (self.validation_file or self.test_file):
            raise ValueError("validation_file and test_file go with train_file, not with dataset_name.")
        self._check_task()
        for name in COUNTS:
            if getattr(self, name) is not None:
                count(1)(name, getattr(self, name))
        self._check_unlabeled()
        self._check_file_format()

    def _check_task(self) -> None:
        choice(*ONLY)("task", self.task)
        defaults = {item.name: item.default for item in fields(self)}
        for task, names in ONLY.items():
            given = [name for name in names if getattr(self, name) != defaults[name]]
            if given and task != self.task:
                raise ValueError(f"{given[0]}={getattr(self, given[0])!r}: used with task: {task} only.")

    def _check_unlabeled(self) -> None:
        if self.unlabeled_file and self.unlabeled_split_name:
            raise ValueError("unlabeled_file, unlabeled_split_name: give one of the two.")
        if self.unlabeled_split_name and self.dataset_name is None:
            raise ValueError(
                f"unlabeled_split_name={self.unlabeled_split_name!r}: goes with dataset_name; give unlabeled_file."
            )
        if self.max_unlabeled_samples is not None and not self.unlabeled_source:
            raise ValueError(
                f"max_unlabeled_samples={self.max_unlabeled_samples}: needs unlabeled_file or unlabeled_split_name."
            )

    @property
    def unlabeled_source(self) -> str:
        """What says where the texts without labels are, as `field='value'`; empty if there are none."""
        given = {name: getattr(self, name) for name in ("unlabeled_file", "unlabeled_split_name")}
        return next((f"{name}={value!r}" for name, value in given.items() if value), "")

    def _check_file_format(self) -> None:
        files = [getattr(self, f"{split}_file") for split in ("train", "validation", "test", "unlabeled")]
        files = [name for name in files if name is not None]
        delimited = any(Path(name).suffix.lower() in DELIMITERS for name in files)
        for name in (name for name in asdict(self.file_format) if getattr(self, name) is not None):
            if not files or (name != "encoding" and not delimited):
                raise ValueError(f"{name}={getattr(self, name)!r}: there is no file that it applies to.")

    @property
    def file_format(self) -> FileFormat:
        """How the files are read."""
        return FileFormat(self.csv_delimiter, self.csv_quoting, self.encoding)
