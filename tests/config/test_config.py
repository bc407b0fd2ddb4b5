"""What the user says, and what is refused."""

import itertools
import json
from dataclasses import fields
from importlib.resources import files

import numpy as np
import pytest
import torch
import yaml

from hf_mixup import Mixup, MixupConfig
from hf_mixup.cli.train.arguments import parse
from hf_mixup.config.recipes import RECIPE_FILES, recipe_names, resolve_config
from hf_mixup.training.collator import MixupCollator
from tests.plain_config import CHOICES, PLAIN, plain_config
from tests.zoo import cached_toy_model, toy_batch


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"site": "hiden"}, r"site='hiden': expected one of .*hidden.* Did you mean 'hidden'\?"),
        ({"mode": "elm"}, r"mode='elm': expected one of elem, batch. Did you mean 'elem'\?"),
        ({"alpha": 0}, r"alpha=0: expected a finite number > 0"),
        ({"alpha": -1.0}, r"alpha=-1.0: .* > 0"),
        ({"alpha": float("nan")}, r"alpha=nan: expected a finite number"),
        ({"alpha": float("inf")}, r"alpha=inf: expected a finite number"),
        ({"alpha": "much"}, r"alpha='much': expected a finite number"),
        ({"beta": 0.0}, r"beta=0.0: .* > 0"),
        ({"lam": 1.5}, r"lam=1.5: .* >= 0 and <= 1"),
        ({"prob": -0.1}, r"prob=-0.1: .* >= 0 and <= 1"),
        ({"prob": 1.1}, r"prob=1.1: .* >= 0 and <= 1"),
        ({"off_epoch": -1}, r"off_epoch=-1: .* >= 0"),
        ({"dominant": "yes"}, r"dominant='yes': expected true or false"),
        ({"layers": [1]}, r"layers=\[1\] needs site='hidden', got site='embeddings'"),
        ({"site": "hidden", "layers": []}, r"layers=\[\]: expected a list of layer numbers"),
        ({"site": "hidden", "layers": 1.5}, r"layers=1.5: expected a list"),
        ({"site": "hidden", "layers": True}, r"True is neither an integer nor a fraction"),
        ({"site": "hidden", "layers": [1.5]}, r"1.5 is neither an integer nor a fraction"),
        ({"site": "hidden", "layers": ["13/12"]}, r"'13/12' is not a fraction of the depth in \[0, 1\]"),
        ({"site": "hidden", "layers": ["x"]}, r"'x' is not a fraction"),
        ({"class_weights": [1.0, -1.0]}, r"class_weights=-1.0: .* >= 0"),
        ({"class_weights": [0.0, 0.0]}, r"class_weights=\[0.0, 0.0\]: at least one must be > 0"),
        ({"class_weights": "12"}, r"class_weights='12': expected a list of numbers"),
        ({"aplha": 0.2}, r"Unknown mixup field 'aplha'. Did you mean 'alpha'\? Fields: partner, self_pairs, memory"),
        ({"partner": "same_clas"}, r"partner='same_clas': expected one of random, .* Did you mean 'same_class'\?"),
        ({"interpolation": "span"}, r"interpolation='span' needs site='input', got site='embeddings'"),
        ({"interpolation": "salient_span", "site": "pooled"}, r"'salient_span' needs site='input', got site='pooled'"),
        ({"interpolation": "box", "site": "hidden"}, r"'box' needs site='input', got site='hidden'"),
        (
            {"interpolation": "dimensions", "site": "pooled"},
            r"'dimensions' needs site='word_embeddings' or 'embeddings' or 'hidden', got site='pooled'",
        ),
        ({"interpolation": "lin"}, r"interpolation='lin': expected one of line, .* Did you mean 'line'\?"),
        ({"bandwidth": 0.5}, r"bandwidth=0.5 needs partner='near_label' or 'near_length', got partner='random'"),
        ({"partner": "near_label", "bandwidth": 0}, r"bandwidth=0: expected a finite number > 0"),
        ({"same_label_prob": 0.6}, r"same_label_prob=0.6 needs partner='lisa', got partner='random'"),
        ({"group": "domain", "partner": "balanced"}, r"group='domain' needs partner='lisa', got partner='balanced'"),
        ({"partner": "lisa", "group": ""}, r"group='': expected a name"),
        ({"partner": "margin"}, r"partner='margin' needs clean_weight > 0: margins are recorded in the unmixed pass"),
        ({"self_pairs": 0}, r"self_pairs=0: expected true or false"),
        ({"alpha": {0: 0.1, 2: 0}}, r"alpha, value=0: expected a finite number > 0"),
        ({"alpha": {-1: 0.1}}, r"alpha, moment=-1: expected a finite number >= 0"),
        ({"schedule": {0: 0, 1.5: 1}}, r"schedule, moment=1.5: expected a finite number >= 0 and <= 1"),
        ({"schedule": {0: 2}}, r"schedule, value=2: expected a finite number >= 0 and <= 1"),
        ({"schedule": {}}, r"schedule=\{\}: expected a mapping such as \{0: 0, 0.1: 1\}"),
        ({"schedule": 0.5}, r"schedule=0.5: expected a mapping"),
        ({"schedule": {"late": 1}}, r"schedule, moment='late': expected a finite number"),
        ({"ramp": "cosin"}, r"ramp='cosin': expected one of linear, cosine, step. Did you mean 'cosine'\?"),
        ({"kappa": 2.0}, r"kappa=2.0 needs label_rule='remix', got label_rule='lambda'"),
        ({"tau": 0.4, "label_rule": "own"}, r"tau=0.4 needs label_rule='remix', got label_rule='own'"),
        ({"class_counts": [1.0, 2.0]}, r"class_counts=\[1.0, 2.0\] needs label_rule='remix'"),
        ({"label_rule": "remix", "kappa": 0.5}, r"kappa=0.5: expected a finite number >= 1"),
        (
            {"alpha": 2.0, "similarity": 1.0, "site": "pooled"},
            r"similarity=1.0 needs site='word_embeddings' or .*, got site='pooled'",
        ),
        ({"similarity_width": 0.6}, r"similarity_width=0.6 needs similarity"),
        (
            {"add_noise": 0.1, "site": "pooled"},
            r"add_noise=0.1 needs site='word_embeddings' or 'embeddings' or 'hidden'",
        ),
        (
            {"mult_noise": 0.1, "site": "input"},
            r"mult_noise=0.1 needs site='word_embeddings' or 'embeddings' or 'hidden'",
        ),
        ({"mult_noise": -0.1}, r"mult_noise=-0.1: expected a finite number >= 0"),
        ({"self_pairs": False, "partner": "lisa"}, r"^self_pairs=False needs partner='random', got partner='lisa'\.$"),
        ({"ramp": "step"}, r"^ramp='step' needs schedule\.$"),
        (
            {"mode": "batch", "interpolation": "dimensions"},
            r"^mode='batch': not with interpolation='dimensions'",
        ),
        ({"similarity": 1.0}, r"^alpha=0.4: not with similarity, which draws lambda in its place\.$"),
        ({"memory": 8}, r"^memory=8 needs partner='previous_batch', got partner='random'\.$"),
        ({"clean_weight": 2}, r"clean_weight=2: expected a finite number >= 0 and <= 1"),
        ({"layers": ["0/12"]}, r"layers=\['0/12'\] needs site='hidden', got site='embeddings'"),
        ({"site": "hidden", "layers": ["-1/12"]}, r"'-1/12' is not a fraction of the depth in \[0, 1\]"),
        ({"site": "hidden", "layers": ["1/0"]}, r"'1/0' is not a fraction of the depth"),
    ],
)
def test_values_that_cannot_work_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        MixupConfig.from_dict(PLAIN | values)


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        (None, 3, [0, 1, 2]),
        ([0, 2, -1], 4, [0, 2, 3]),
        ([3, -1], 4, [3]),
        (["7/12", "9/12", "12/12"], 12, [6, 8, 11]),
        (["7/12", "9/12", "12/12"], 6, [3, 4, 5]),
        (["7/12", "9/12", "12/12"], 24, [13, 17, 23]),
        (["1/12"], 3, [0]),
        (["0/12"], 3, [-1]),
        (["0/4", "1/4", "2/4", "3/4"], 12, [-1, 2, 5, 8]),
        (["0/4", "1/4"], 1, [-1, 0]),
    ],
)
def test_layers_are_counted_from_0_and_fractions_scale(layers, depth, expected):
    assert plain_config(site="hidden", layers=layers).resolve_layers(depth) == expected


@pytest.mark.parametrize("layer", [4, -5])
def test_layers_out_of_range_are_named(layer):
    with pytest.raises(
        ValueError, match=rf"layer {layer} is out of range, the model has 4 blocks .*0 to 3, or -1 to -4"
    ):
        plain_config(site="hidden", layers=[layer]).resolve_layers(4)


@pytest.mark.parametrize(
    ("layers", "expected"), [(1, [1]), ("1", [1]), ("2, -1", [2, -1]), ("7/12", ["7/12"]), ((0, "1/2"), [0, "1/2"])]
)
def test_layers_may_be_said_in_short(layers, expected):
    assert plain_config(site="hidden", layers=layers).layers == expected


def test_numbers_may_be_text_as_yaml_reads_them():
    assert MixupConfig(**yaml.safe_load("{alpha: 4e-1, prob: 1e0}")) == MixupConfig(alpha=0.4, prob=1.0)


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    weights = np.array([1.0, 2.0], dtype=np.float32)
    config = plain_config(site="hidden", layers=iter(np.array([1, 2])), alpha=np.float32(0.5), class_weights=weights)
    config.save(tmp_path / "mixup.yaml")
    assert MixupConfig.from_file(tmp_path / "mixup.yaml") == config
    assert (config.layers, config.alpha, config.class_weights) == ([1, 2], 0.5, [1.0, 2.0])


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_config_survives_dict_and_file(tmp_path, suffix):
    config = plain_config(
        site="hidden", layers=[1, "7/12"], alpha=0.2, lam=0.3, off_epoch=2.0, class_weights=[1.0, 2.0]
    )
    path = tmp_path / f"mixup.{suffix}"
    config.save(path)
    assert (json.loads if suffix == "json" else yaml.safe_load)(path.read_text()) == config.to_dict()
    assert MixupConfig.from_file(path) == config == MixupConfig.from_dict(config.to_dict()) == resolve_config(path)
    assert resolve_config(str(path)) == config


@pytest.mark.parametrize("text", ["- alpha", "alpha", ""])
def test_a_yaml_that_is_not_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="list.yaml: expected a mapping of mixup fields, got"):
        resolve_config(path)


def test_broken_yaml_and_unknown_fields_name_the_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("alpha: [")
    with pytest.raises(ValueError, match="broken.yaml: not valid YAML"):
        resolve_config(path)
    path.write_text("sight: hidden")
    with pytest.raises(ValueError, match="broken.yaml: Unknown mixup field 'sight'. Did you mean 'site'"):
        resolve_config(path)
    path.write_text("!!python/object/apply:os.system ['false']")
    with pytest.raises(ValueError, match="not valid YAML"):
        resolve_config(path)


def test_a_missing_file_and_an_unknown_recipe_are_named():
    with pytest.raises(FileNotFoundError, match="No mixup config file at 'absent.yaml'"):
        resolve_config("absent.yaml")
    with pytest.raises(ValueError, match="mixup='tmxi': no such recipe. Did you mean 'tmix'"):
        resolve_config("tmxi")
    with pytest.raises(ValueError, match="mixup=3: expected"):
        resolve_config(3)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_config(name):
    config = resolve_config(name)
    assert isinstance(config, MixupConfig)
    assert config.resolve_layers(6)


def test_the_ways_to_say_default_and_none():
    assert {"default", "word_mixup", "embed_mix", "sent_mixup", "manifold", "tmix"} <= set(recipe_names())
    assert resolve_config("default") == resolve_config(True) != resolve_config("tmix")
    assert resolve_config(None) is resolve_config("none") is resolve_config(False) is None


def test_whatever_says_one_field_says_the_rest(tmp_path):
    (tmp_path / "mine.yaml").write_text("alpha: 0.2")
    command = ["--model_name_or_path", "m", "--train_file", "t.csv", "--mixup.alpha", "0.2"]
    said = [{"alpha": 0.2}, {"recipe": "fixed", "alpha": 0.2}, tmp_path / "mine.yaml"]
    assert [resolve_config(spec) for spec in said] == [MixupConfig(alpha=0.2)] * len(said)
    assert MixupConfig() == resolve_config("fixed") == resolve_config({})
    assert resolve_config(parse(command)[0].mixup) == resolve_config({"recipe": "default", "alpha": 0.2})


def test_a_strength_is_a_share_or_auto():
    assert MixupConfig(strength="auto").strength == "auto"
    assert MixupConfig(strength=0).strength == 0
    for wrong in ("atuo", 1.5, -0.1, None, True):
        with pytest.raises(ValueError, match="strength="):
            MixupConfig(strength=wrong)
    with pytest.raises(ValueError, match="Did you mean 'auto'"):
        MixupConfig(strength="atuo")


def test_only_what_may_be_missing_is_null():
    missing = {name for name, value in yaml.safe_load(MixupConfig().to_yaml()).items() if value is None}
    assert missing == {
        *("blocks", "beta", "lam", "similarity", "off_epoch", "schedule", "class_counts", "class_weights"),
        *("check_rows", "unlabeled"),
    }


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_what_differs_from_the_default_and_nothing_else(name):
    default, recipe = MixupConfig().to_dict(), resolve_config(name).to_dict()
    named = yaml.safe_load((files(RECIPE_FILES) / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(named) == {field for field in recipe if recipe[field] != default[field]}


@pytest.mark.parametrize("values", [{"layers": None}, {"dominant": False}, {"kappa": 3.0}, MixupConfig().to_dict()])
def test_what_is_at_its_default_or_off_is_never_refused(values):
    for other in ({"site": "embeddings"}, {"site": "word_embeddings", "similarity": 1.0}, {"partner": "same_class"}):
        assert MixupConfig(**values | other)


LISA, REMIX = {"partner": "lisa"}, {"label_rule": "remix", "class_counts": [50.0, 10.0, 2.0]}
# For each field: what else is said, and two values of it that are not the same.
PAIRS = {
    "site": ({}, "embeddings", "pooled"),
    "layers": ({"site": "hidden"}, [0], [1]),
    "blocks": ({}, None, ["bert.encoder.layer.1", "bert.encoder.layer.2"]),
    "partner": ({}, "random", "same_class"),
    "self_pairs": ({}, True, False),
    "bandwidth": ({"partner": "near_label"}, 0.3, 100.0),
    "same_label_prob": (LISA, 0.0, 1.0),
    "group": (LISA, "group", "domain"),
    "alpha": ({}, 0.4, {0: 0.4, 1: 2.0}),
    "neighbors": ({"partner": "near_text", "near_prob": 1.0}, 1, 5),
    "near_prob": ({"partner": "near_text", "neighbors": 1}, 0.0, 1.0),
    "beta": ({}, None, 3.0),
    "lam": ({}, None, 0.3),
    "dominant": ({"alpha": 1.0}, False, True),
    "similarity": ({"alpha": 2.0}, 1.0, 5.0),
    "similarity_width": ({"alpha": 2.0, "similarity": 1.0}, 0.5, 2.0),
    "mode": ({}, "elem", "batch"),
    "prob": ({}, 0.9, 0.3),
    "strength": ({}, 1.0, 0.5),
    "memory": ({"partner": "previous_batch"}, 16, 8),
    "off_epoch": ({}, None, 1.0),
    "schedule": ({}, {0: 1.0}, {0: 0.0, 1: 1.0}),
    "warmup_batches": ({}, 0, 10),
    "ramp": ({"schedule": {0: 0.0, 1: 1.0}}, "linear", "cosine"),
    "interpolation": ({"site": "input"}, "span", "salient_span"),
    "add_noise": ({}, 0.1, 0.5),
    "mult_noise": ({}, 0.1, 0.5),
    "label_rule": ({}, "lambda", "larger"),
    "kappa": (REMIX, 3.0, 100.0),
    "tau": (REMIX, 0.5, 0.0),
    "class_counts": (REMIX, [50.0, 10.0, 2.0], [1.0, 1.0, 1.0]),
    "clean_weight": ({}, 0.0, 0.5),
    "class_weights": ({}, None, [1.0, 2.0, 3.0]),
}
TEXTS = toy_batch((9, 9, 9, 9, 9, 9, 7, 5))
LABELS = torch.tensor([0, 0, 1, 1, 2, 0, 1, 2])
COLUMNS = {"group": torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), "domain": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])}


def effect_of(values):
    """Partners, lambdas, targets, logits and losses of four batches, in one row of numbers."""
    config, model = plain_config(**values), cached_toy_model("bert")
    if config.partner == "lisa":
        collator = MixupCollator(lambda features: TEXTS | COLUMNS | {"labels": LABELS}, config, 3)
        return torch.cat([torch.cat([b["mixup_partner"], b["mixup_lam"]]) for b in (collator([0]) for _ in range(4))])
    mixup, seen = Mixup(model, config), []
    torch.manual_seed(0)
    with torch.no_grad():
        for step in range(4):
            mixup.planner.generator, mixup.planner.drawn = np.random.default_rng(step), 0
            plan = mixup.draw(TEXTS, epoch=step / 2, progress=0.2 + step / 5, labels=LABELS)
            with mixup.apply(plan, TEXTS):
                logits = model(**TEXTS).logits
            clean = model(**TEXTS).logits if mixup.needs_clean_pass(plan) else None
            losses = mixup.loss(logits, LABELS, plan, clean_logits=clean, reduction="none")
            seen += [
                plan.partner,
                plan.resolved.lam,
                mixup.targets(LABELS, plan).flatten(),
                logits.flatten(),
                losses,
            ]
    return torch.cat(seen)


# What only a trainer uses is seen in tests/training/test_held_out.py and test_unlabeled.py.
OF_TRAINERS = ("check_rows", "unlabeled")


@pytest.mark.parametrize("name", [field.name for field in fields(MixupConfig) if field.name not in OF_TRAINERS])
def test_every_field_changes_something(name):
    base, one, other = PAIRS[name]
    first, second = effect_of(base | {name: one}), effect_of(base | {name: other})
    assert torch.equal(first, effect_of(base | {name: one}))
    assert torch.isfinite(first).all() and torch.isfinite(second).all()
    assert (first - second).abs().max() > 1e-3


WORDS = {
    "site": [{"site": word} for word in CHOICES["site"] if word != "input"],
    "partner": [
        {"partner": word} | ({"clean_weight": 0.5} if word == "margin" else {})
        for word in CHOICES["partner"]
        # Labels per token: tests/test_token_methods.py.
        if word not in ("lisa", "same_text")
    ],
    "mode": [{"mode": word} for word in CHOICES["mode"]],
    "ramp": [{"ramp": word, "schedule": {0: 0.0, 1: 1.0}} for word in CHOICES["ramp"]],
    "interpolation": [
        {"interpolation": word, "site": "input" if "span" in word else "embeddings"}
        for word in CHOICES["interpolation"]
        # Boxes are for images, entities for labels per token.
        if word not in ("box", "entity_span")
    ],
    "label_rule": [{"label_rule": word} | (REMIX if word == "remix" else {}) for word in CHOICES["label_rule"]],
}


@pytest.mark.parametrize("name", CHOICES)
def test_every_word_means_something_else(name):
    # On one process alone all ranks are this one.
    effects = [effect_of(values) for values in WORDS[name] if values != {"partner": "all_ranks"}]
    for first, second in itertools.combinations(effects, 2):
        assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_moments_survive_a_file(tmp_path, suffix):
    config = plain_config(alpha={0: 0.1, 2.5: 0.4}, schedule={0: 0, 0.1: 1}, class_weights={0: None, 2: [1, 4]})
    config.save(tmp_path / f"mixup.{suffix}")
    read = MixupConfig.from_file(tmp_path / f"mixup.{suffix}")
    assert read == config and read.alpha == {0.0: 0.1, 2.5: 0.4} and read.schedule == {0.0: 0.0, 0.1: 1.0}
    assert read.class_weights == {0.0: None, 2.0: [1.0, 4.0]}


def test_moments_may_be_text_in_any_order():
    config = MixupConfig.from_dict({"schedule": {"1e-1": "1", 0: 0}, "alpha": {"2": "4e-1", "0": 0.1}})
    assert list(config.schedule.items()) == [(0.0, 0.0), (0.1, 1.0)] and config.alpha == {0.0: 0.1, 2.0: 0.4}


def test_the_group_column_has_a_name_of_its_own():
    assert plain_config(partner="lisa").group_column == "group"
    assert plain_config(partner="lisa", group="domain").group_column == "domain"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"partner": "other_class"},
            r"labels: with partner='other_class' a plan depends on them: give draw\(batch, labels=labels",
        ),
        (REMIX, r"labels: with label_rule='remix' a plan depends on them: give draw\(batch, labels=labels"),
        ({"schedule": {0: 1}}, r"schedule=\{0.0: 1.0\} needs the progress of training: give draw\(batch, progress="),
        ({"alpha": {0: 1}}, r"alpha=\{0.0: 1.0\} needs the progress of training: give draw\(batch, epoch="),
    ],
)
def test_what_a_plan_lacks_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        Mixup(cached_toy_model("bert"), PLAIN | values).draw(TEXTS)


def test_what_the_labels_do_not_allow_is_named():
    model = cached_toy_model("bert")
    with pytest.raises(
        ValueError,
        match=r"groups: partner='lisa' needs each example's group, and the batch has no column 'group'",
    ):
        Mixup(model, PLAIN | LISA).draw(TEXTS, labels=LABELS)
    with pytest.raises(ValueError, match="class_counts: label_rule='remix' needs the number of training examples"):
        Mixup(model, PLAIN | {"label_rule": "remix"}).draw(TEXTS, labels=LABELS)
    scores = cached_toy_model("bert", num_labels=1)
    with pytest.raises(ValueError, match="partner='balanced' needs classes; for scores there is 'near_label'"):
        Mixup(scores, PLAIN | {"partner": "balanced"})
    with pytest.raises(ValueError, match="label_rule='remix' needs single_label_classification, not multi_label"):
        Mixup(model, PLAIN | REMIX).draw(TEXTS, labels=torch.eye(3)[LABELS])
    with pytest.raises(ValueError, match="clean_weight=0.5: loss needs clean_logits, those of the same batch unmixed"):
        mixup = Mixup(model, PLAIN | {"clean_weight": 0.5})
        plan = mixup.draw(TEXTS)
        with mixup.apply(plan, TEXTS):
            logits = model(**TEXTS).logits
        mixup.loss(logits, LABELS, plan)


def test_layers_in_a_list_may_be_text():
    assert plain_config(site="hidden", layers=["0", "1"]).layers == [0, 1]


@pytest.mark.parametrize("values", [{"tau": 0.0}, {"same_label_prob": 0.0}])
def test_a_zero_that_means_nothing_is_refused(values):
    with pytest.raises(ValueError, match="needs"):
        MixupConfig(**values)


@pytest.mark.parametrize("values", [{"lam": 0.3}, {"mode": "batch"}, {"beta": 2.0}])
def test_what_similarity_leaves_without_a_meaning_is_refused(values):
    with pytest.raises(ValueError, match="similarity"):
        plain_config(**{"alpha": 2.0, "similarity": 1.0} | values)


def test_class_counts_of_another_number_of_classes_are_named():
    with pytest.raises(ValueError, match="class_counts: 2 .* num_labels=3"):
        Mixup(cached_toy_model("bert"), PLAIN | REMIX | {"class_counts": [1.0, 2.0]}).draw(TEXTS, labels=LABELS)


@pytest.mark.parametrize("recipe", ["span_mix", "ssmix", "aum_guided"])
def test_a_method_for_tokens_names_the_tokens_that_are_missing(recipe):
    batch = {"inputs_embeds": torch.randn(8, 6, 32), "attention_mask": torch.ones(8, 6)}
    with pytest.raises(ValueError, match="input_ids"):
        Mixup(cached_toy_model("bert"), recipe).draw(batch, labels=LABELS)


@pytest.mark.parametrize(("name", "number"), [("labels", 3), ("groups", 3)])
def test_labels_and_groups_of_another_batch_are_named(name, number):
    given = {"labels": LABELS, "groups": COLUMNS["group"]}
    with pytest.raises(ValueError, match=name):
        Mixup(cached_toy_model("bert"), PLAIN | LISA).draw(TEXTS, **(given | {name: given[name][:number]}))


def test_a_file_with_nulls_for_what_takes_none_says_the_defaults(tmp_path):
    old = "site: hidden\nlayers: null\nmemory: null\nbandwidth: null\nsame_label_prob: null\ngroup: null\n"
    path = tmp_path / "mixup_config.yaml"
    path.write_text(old + "similarity_width: null\nkappa: null\ntau: null\nlam: null\n")
    assert MixupConfig.from_file(path) == MixupConfig(layers=None)
    with pytest.raises(ValueError, match="kappa=None: expected a finite number"):
        MixupConfig(kappa=None)
