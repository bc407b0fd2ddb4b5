import math
from dataclasses import asdict
from itertools import count

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from hf_mixup import MixupConfig, MixupTrainer
from hf_mixup.config.recipes import recipe_names, resolve_config
from hf_mixup.evaluation import compute_metrics_for
from hf_mixup.training.search import split_hyperparameters, trial_config
from hf_mixup.training.search_objective import check_direction, choose_objective
from tests.plain_config import PLAIN
from tests.toy_runs import arguments, collate, examples, make_trainer, steady_bert
from tests.zoo import toy_model

pytest.importorskip("optuna")

MIXED = PLAIN | {"site": "embeddings", "alpha": 1.0, "self_pairs": False}
METRICS = compute_metrics_for("single_label_classification")


class Settings(TrainerCallback):
    """Keeps the settings with which each training of a search began."""

    def __init__(self):
        self.configs, self.args, self.streams = [], [], []

    def on_train_begin(self, args, state, control, **kwargs):
        mixup = self.trainer.mixup
        self.configs.append(None if mixup is None else mixup.config)
        self.args.append({name: getattr(args, name) for name in ("learning_rate", "seed", "weight_decay")})
        if mixup is not None:
            self.streams.append(mixup.planner.generator.bit_generator.state["state"]["state"])


def searching(folder, mixup=MIXED, **options):
    """A trainer that can search, and what its trainings begin with."""
    settings = Settings()
    defaults = {"model_init": lambda: steady_bert(), "eval_dataset": examples(6), "max_steps": 1, "report_to": "none"}
    trainer = make_trainer(folder, mixup=mixup, callbacks=[settings], **defaults | options)
    settings.trainer = trainer
    return trainer, settings


def fixed(*trials):
    """A space in which each trial is given."""

    def space(trial):
        chosen = trials[trial.number]
        return {name: trial.suggest_categorical(f"{name}", [value]) for name, value in chosen.items()}

    return space


def untold(*trials):
    """As `fixed`, past optuna, which wants the same choices in every trial."""
    return lambda trial: dict(trials[trial.number])


def search(trainer, *trials, space=untold, **options):
    return trainer.hyperparameter_search(hp_space=space(*trials), backend="optuna", n_trials=len(trials), **options)


# ---- What a search space may name ----


def test_a_search_over_alpha_and_the_learning_rate_sets_both(tmp_path, monkeypatch):
    alphas, warnings = iter([0.25, 4.0]), []
    monkeypatch.setattr("transformers.trainer.logger.warning", warnings.append)

    def space(trial):
        return {
            "alpha": trial.suggest_float("alpha", *[next(alphas)] * 2),
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3),
            "seed": trial.suggest_int("seed", 10 + trial.number, 10 + trial.number),
        }

    trainer, settings = searching(tmp_path)
    best = trainer.hyperparameter_search(hp_space=space, backend="optuna", n_trials=2, direction="minimize")
    assert [config.alpha for config in settings.configs] == [0.25, 4.0]
    assert [args["seed"] for args in settings.args] == [10, 11]
    assert all(1e-4 <= args["learning_rate"] <= 1e-3 for args in settings.args)
    assert best.hyperparameters["alpha"] in (0.25, 4.0)
    expected = [np.random.default_rng([seed, 0]).bit_generator.state["state"]["state"] for seed in (10, 11)]
    assert settings.streams == expected
    assert not [warning for warning in warnings if "alpha" in warning]


@pytest.mark.parametrize("mixup", [MIXED, None], ids=["mixing", "none"])
def test_recipes_and_none_are_the_base_of_a_trial_and_fields_change_it(tmp_path, mixup):
    trainer, settings = searching(tmp_path, mixup)
    search(
        trainer,
        {"mixup": "tmix"},
        {"recipe": "sent_mixup", "mixup.alpha": 0.5},
        {"mixup": "none", "alpha": 0.5},
        {"mixup": None},
        {"mixup": {"site": "pooled", "prob": 0.5}, "alpha": 3.0},
        {},
    )
    assert settings.configs == [
        resolve_config("tmix"),
        MixupConfig(site="pooled", alpha=0.5, dominant=False, warmup_batches=0),
        None,
        None,
        MixupConfig(site="pooled", prob=0.5, alpha=3.0),
        resolve_config(mixup),
    ]


def test_the_best_run_holds_the_names_as_they_were_written(tmp_path):
    trainer, _ = searching(tmp_path)
    best = search(trainer, {"recipe": "sent_mixup", "mixup.alpha": 0.5, "weight_decay": 0.1}, space=fixed)
    assert best.hyperparameters == {"recipe": "sent_mixup", "mixup.alpha": 0.5, "weight_decay": 0.1}


def test_every_trial_starts_from_the_config_and_the_arguments_of_the_trainer(tmp_path):
    trainer, settings = searching(tmp_path, weight_decay=0.25)
    search(trainer, {"alpha": 4.0, "weight_decay": 0.5}, {"prob": 0.5}, {"weight_decay": 0.125})
    assert [(config.alpha, config.prob) for config in settings.configs] == [(4.0, 1.0), (1.0, 0.5), (1.0, 1.0)]
    assert [args["weight_decay"] for args in settings.args] == [0.5, 0.25, 0.125]
    search(trainer, {"alpha": 0.25})
    search(trainer, {})
    assert settings.configs[-1] == MixupConfig(**MIXED)


def test_the_same_trial_again_gives_the_same_result(tmp_path):
    made, objectives = [], []

    def model_init():
        made.append(torch.rand(()).item())
        return toy_model("bert")

    def objective(metrics):
        objectives.append(metrics["eval_loss"])
        return objectives[-1]

    trainer, settings = searching(tmp_path, model_init=model_init, max_steps=2, learning_rate=1e-2)
    made.clear()
    one, other = {"mixup": "default", "warmup_batches": 0, "seed": 11}, {"mixup": "none", "seed": 12}
    search(trainer, one, other, one, {}, other, {}, compute_objective=objective)
    first, second, again, plain, second_again, plain_again = zip(made, objectives, strict=True)
    assert (first, second, plain) == (again, second_again, plain_again)
    assert len({first, second, plain}) == 3
    assert first[0] == torch.rand((), generator=torch.Generator().manual_seed(11)).item()


def test_a_model_init_may_take_the_trial(tmp_path):
    dropouts = []

    def model_init(trial):
        dropouts.append(None if trial is None else trial.suggest_categorical("dropout", [0.25]))
        return steady_bert()

    trainer, _ = searching(tmp_path, model_init=model_init)
    best = search(trainer, {"alpha": 0.5}, space=fixed)
    assert dropouts == [None, 0.25]
    assert best.hyperparameters == {"alpha": 0.5, "dropout": 0.25}
    assert trainer.model_init is model_init


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"alhpa": 0.2}, r"Unknown hyperparameter 'alhpa'\. Did you mean 'alpha'\?"),
        ({"mixup.alhpa": 0.2}, r"'mixup\.alhpa'\. Did you mean 'mixup\.alpha'\?"),
        ({"learning_rte": 0.2}, r"Did you mean 'learning_rate'\?"),
        ({"recipe": "tmx"}, r"'tmx': no such recipe\. Did you mean 'tmix'\?"),
        ({"alpha": -1.0}, r"alpha=-1\.0: expected a finite number > 0"),
        ({"recipe": "tmix", "mixup": "tmix"}, "mixup='tmix': the search space holds mixup by another name"),
        ({"alpha": 0.2, "mixup.alpha": 0.4}, "mixup.alpha=0.4: the search space holds alpha by another name"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_trial_trains(tmp_path, chosen, message):
    trainer, settings = searching(tmp_path)
    with pytest.raises(ValueError, match=message):
        search(trainer, chosen)
    assert not settings.configs


def test_fields_without_a_base_are_refused(tmp_path):
    trainer, settings = searching(tmp_path, None)
    with pytest.raises(ValueError, match="alpha: the trainer has mixup=None, so a search space needs mixup or recipe"):
        search(trainer, {"alpha": 0.2})
    assert not settings.configs


def test_what_the_trainer_refuses_a_trial_is_refused_too(tmp_path):
    trainer, settings = searching(tmp_path, None, compute_loss_func=lambda outputs, labels, **kwargs: outputs.loss)
    with pytest.raises(ValueError, match="clean_weight: not used by a compute_loss_func"):
        search(trainer, {"recipe": "reg_mixup"})
    assert not settings.configs


def collate_groups(rows):
    groups = {"group": torch.tensor([row["group"] for row in rows])} if "group" in rows[0] else {}
    return collate(rows) | groups


def test_a_trial_may_need_what_others_do_not(tmp_path):
    rows = Dataset.from_list([row | {"group": number % 2} for number, row in enumerate(examples(16))])
    trainer, settings = searching(tmp_path, rows=rows)
    trainer.data_collator = collate_groups
    search(trainer, {}, {"recipe": "lisa"}, {"recipe": "remix"}, {})
    assert [config.partner for config in settings.configs] == ["random", "lisa", "random", "random"]
    assert settings.configs[2].class_counts == [6.0, 5.0, 5.0]
    assert "group" not in trainer._signature_columns


def test_a_training_after_a_search_that_ended_is_trainers_own(tmp_path):
    trainer, settings = searching(tmp_path)
    search(trainer, {"alpha": 0.5})
    trainer.train()
    assert len(settings.configs) == 2


# ---- Fields that no longer apply ----


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("site", ["word_embeddings", "embeddings", "hidden", "pooled"])
def test_a_site_over_any_recipe_resets_only_what_does_not_apply(recipe, site):
    base = resolve_config(recipe)
    config = trial_config(base, {"site": site})
    reset = {name for name in asdict(config) if getattr(config, name) != getattr(base, name)} - {"site"}
    assert config.site == site
    allowed = {"layers", "interpolation", "similarity", "similarity_width", "add_noise", "mult_noise"}
    # Tokens are mixed with others of their text at 'pooled' alone.
    assert reset <= allowed | ({"partner"} if base.partner == "same_text" else set())
    assert base == resolve_config(recipe)


@pytest.mark.parametrize(
    ("recipe", "chosen", "reset"),
    [
        ("tmix", {"site": "pooled"}, {}),
        ("manifold", {"site": "pooled"}, {"layers": ["7/12", "9/12", "12/12"]}),
        ("tmix", {"site": "hidden"}, {}),
        ("manifold", {"site": "pooled", "alpha": 0.2}, {"layers": ["7/12", "9/12", "12/12"]}),
        ("embed_mix", {"similarity": 1.0}, {"alpha": 2.0, "mode": "elem"}),
        (
            {"recipe": "warped", "similarity_width": 0.2},
            {"site": "pooled"},
            {"similarity": None, "similarity_width": 0.5},
        ),
        ("ssmix", {"partner": "same_class"}, {"self_pairs": True}),
        ({"recipe": "c_mixup", "bandwidth": 0.3}, {"partner": "random"}, {"bandwidth": 1.0}),
        ({"recipe": "remix", "kappa": 2.0, "tau": 0.1}, {"label_rule": "lambda"}, {"kappa": 3.0, "tau": 0.5}),
        ("mixup_transformer", {"schedule": None}, {"ramp": "linear"}),
    ],
)
def test_fields_that_a_choice_makes_inapplicable_fall_back_to_their_defaults(recipe, chosen, reset):
    expected = resolve_config(recipe).to_dict() | reset | chosen
    assert trial_config(resolve_config(recipe), chosen).to_dict() == expected


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"site": "pooled", "layers": [1]}, r"layers=\[1\] needs site='hidden'"),
        ({"site": "hiden"}, "site='hiden'.*Did you mean 'hidden'"),
        ({"kappa": 2.0}, "kappa=2.0 needs label_rule='remix'"),
    ],
)
def test_chosen_fields_do_not_fall_back(chosen, message):
    with pytest.raises(ValueError, match=message):
        trial_config(resolve_config("tmix"), chosen)


def test_names_are_split_into_mixup_and_training():
    chosen = {"recipe": "tmix", "mixup.alpha": 0.5, "prob": 0.5, "learning_rate": 1e-3}
    expected = {"mixup": "tmix", "alpha": 0.5, "prob": 0.5}, {"learning_rate": 1e-3}
    assert split_hyperparameters(chosen, ["learning_rate"]) == expected


# ---- Objective and direction ----


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("accuracy", "maximize"), ("eval_accuracy", "maximize"), ("nll", "minimize"), ("eval_loss", "minimize")],
)
def test_the_objective_is_the_metric_for_the_best_model_in_its_own_direction(tmp_path, metric, direction):
    trainer, _ = searching(tmp_path, compute_metrics=METRICS, metric_for_best_model=metric)
    values, evaluate = [], trainer.evaluate

    def recorded(*args, **kwargs):
        metrics = evaluate(*args, **kwargs)
        values.append(metrics[f"eval_{metric.removeprefix('eval_')}"])
        return metrics

    trainer.evaluate = recorded
    best = search(trainer, {"learning_rate": 0.3}, {"learning_rate": 1e-4}, {"learning_rate": 3e-2})
    assert best.objective == (max if direction == "maximize" else min)(values)
    assert len(set(values)) > 1


@pytest.mark.parametrize(("greater", "direction"), [(None, "maximize"), (True, "maximize"), (False, "minimize")])
def test_a_metric_that_is_not_known_goes_as_the_training_arguments_say(tmp_path, greater, direction):
    args = TrainingArguments(str(tmp_path), metric_for_best_model="profit", greater_is_better=greater)
    assert choose_objective(args, None, None, True).direction == direction
    assert choose_objective(args, None, "minimize", True).direction == "minimize"


@pytest.mark.parametrize(
    ("options", "direction", "message"),
    [
        ({"metric_for_best_model": "accuracy"}, "minimize", "direction='minimize': give direction='maximize' for accu"),
        ({"metric_for_best_model": "eval_nll"}, "maximize", "direction='maximize': give direction='minimize' for nll"),
        ({"compute_metrics": None}, "maximize", "direction='maximize': give direction='minimize' for loss"),
        ({}, "minimise", "direction='minimise': expected one of .*Did you mean 'minimize'"),
        ({}, ["minimize", "maximize"], "a list needs a compute_objective"),
    ],
)
def test_a_direction_that_cannot_be_right_is_refused_before_the_first_trial(tmp_path, options, direction, message):
    trainer, settings = searching(tmp_path, **{"compute_metrics": METRICS} | options)
    with pytest.raises(ValueError, match=message):
        search(trainer, {}, direction=direction)
    assert not settings.configs


@pytest.mark.parametrize(
    ("names", "direction", "message"),
    [
        (("accuracy", "nll"), "maximize", "sum of metrics that do not go together .maximize accuracy; minimize nll"),
        (("accuracy", "macro_f1"), None, "direction='minimize': give direction='maximize' for accuracy, macro_f1"),
        (("nll", "brier", "mine"), "maximize", "direction='maximize': give direction='minimize' for nll, brier"),
    ],
)
def test_a_sum_that_means_nothing_is_refused_at_the_first_evaluation(tmp_path, names, direction, message):
    evaluations = count()

    def metrics(prediction):
        next(evaluations)
        return {"mine": 1.0} | {name: 0.5 for name in names}

    trainer, settings = searching(tmp_path, compute_metrics=metrics, eval_strategy="steps", eval_steps=1, max_steps=3)
    with pytest.raises(ValueError, match=f"{message}.*metric_for_best_model.*compute_objective"):
        search(trainer, {}, direction=direction)
    assert next(evaluations) == 1


def test_without_a_metric_that_is_known_the_sum_and_the_loss_are_trainers(tmp_path):
    trainer, _ = searching(tmp_path, compute_metrics=lambda prediction: {"mine": 0.25, "accuracy": 0.5})
    trainer.evaluate()
    assert search(trainer, {}, direction="maximize").objective == 0.75
    trainer, _ = searching(tmp_path)
    prepared = trainer.evaluate()
    assert "eval_model_preparation_time" in prepared
    assert search(trainer, {"learning_rate": 0.0}).objective == prepared["eval_loss"]


def test_an_objective_of_ones_own_is_as_in_trainer(tmp_path):
    trainer, _ = searching(tmp_path, compute_metrics=METRICS, metric_for_best_model="nll")
    values = iter([1.0, 3.0, 2.0])
    best = search(trainer, {}, {}, {}, compute_objective=lambda metrics: next(values), direction="maximize")
    assert (best.run_id, best.objective) == ("1", 3.0)


def test_a_metric_that_the_evaluation_does_not_return_is_named_with_its_nearest(tmp_path):
    trainer, _ = searching(tmp_path, compute_metrics=METRICS, metric_for_best_model="acuracy")
    with pytest.raises(ValueError, match="metric_for_best_model='acuracy'.*Did you mean 'accuracy'.*loss, accuracy"):
        search(trainer, {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_trial_that_diverged_is_never_the_best(tmp_path, direction, value):
    trainer, _ = searching(tmp_path)
    values = iter([value, 3.0, value])
    best = search(trainer, {}, {}, {}, compute_objective=lambda metrics: next(values), direction=direction)
    assert (best.run_id, best.objective) == ("1", 3.0)


def test_of_several_objectives_one_that_is_not_finite_loses_all(tmp_path):
    trainer, _ = searching(tmp_path)
    values = iter([[0.0, math.nan], [1.0, 1.0], [0.5, 0.5], [math.inf, 9.0]])
    directions = ["minimize", "maximize"]
    best = search(trainer, {}, {}, {}, {}, compute_objective=lambda metrics: next(values), direction=directions)
    assert sorted(run.run_id for run in best) == ["1", "2"]


@pytest.mark.parametrize(("value", "direction"), [(math.nan, "maximize"), ([math.nan, 1.0], ["minimize", "maximize"])])
def test_a_search_in_which_every_trial_diverged_is_an_error(tmp_path, value, direction):
    trainer, _ = searching(tmp_path)
    with pytest.raises(ValueError, match="every trial diverged, no objective was finite"):
        search(trainer, {}, {}, compute_objective=lambda metrics: value, direction=direction)


def test_a_model_of_nan_weights_loses(tmp_path):
    trainer, _ = searching(tmp_path, max_steps=2, max_grad_norm=0.0, eval_strategy="steps", eval_steps=1)
    best = search(trainer, {"learning_rate": 1e38}, {"learning_rate": 1e-3}, {"learning_rate": 1e38})
    assert best.run_id == "1"
    assert math.isfinite(best.objective)


def test_directions_are_known_with_and_without_eval():
    check_direction(["accuracy", "macro_f1", "temperature"], "maximize")
    with pytest.raises(ValueError, match="do not go together"):
        check_direction(["accuracy", "nll"], None)


def test_the_class_weights_of_the_trainer_hold_unless_a_trial_chooses_its_own(tmp_path):
    settings = Settings()
    trainer = MixupTrainer(
        model_init=lambda: steady_bert(),
        args=arguments(tmp_path, max_steps=1),
        train_dataset=examples(),
        eval_dataset=examples(6),
        data_collator=collate,
        callbacks=[settings],
        mixup=None,
        class_weights=[1.0, 2.0, 0.5],
    )
    settings.trainer = trainer
    search(trainer, {"mixup": "tmix"}, {"mixup": "tmix", "class_weights": None}, {"mixup": "none"})
    assert [config and config.class_weights for config in settings.configs] == [[1.0, 2.0, 0.5], None, None]


# ---- A strength that follows held-out predictions ----


def test_a_trial_has_checks_of_its_own(tmp_path):
    trainer, settings = searching(tmp_path, mixup=None, eval_dataset=examples(24), max_steps=10, learning_rate=3e-3)
    seen = []

    class Note(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            auto = trainer.mixup and trainer.mixup.planner.auto_strength
            seen.append(auto and [check.rows for check in auto.checks])

    trainer.add_callback(Note())
    auto = PLAIN | {"strength": "auto", "check_rows": 20}
    search(trainer, {"mixup": auto}, {"mixup": "none"}, {"mixup": auto | {"check_rows": 0}})
    assert seen == [[20] * 9, None, []]
