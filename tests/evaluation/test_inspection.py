"""What `hf-mixup inspect` finds, measures and says."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from benchmarks.flash_stand_in import flash_stand_in
from hf_mixup import Mixup, MixupPlan, inspect_model
from hf_mixup.cli.inspect.named_model import named_model
from hf_mixup.cli.inspect.toy import toy_model
from hf_mixup.cli.main import main
from hf_mixup.forward.anatomy import masks
from hf_mixup.forward.anatomy.calling import probe_batch
from hf_mixup.forward.anatomy.host import MASKED_BIASES
from hf_mixup.forward.anatomy.inputs import logits_of
from hf_mixup.forward.state import Mixing
from tests.hosts import T5_MASK
from tests.plain_config import plain_config

# Read-out, whether padding counts as text, kinds of masks and stacks of the blocks.
FACTS = {
    "bert": ("first", False, {"boolean"}, [None] * 3),
    "llama": ("last_token", False, {"boolean"}, [None] * 3),
    "t5": ("last_eos", False, {T5_MASK}, ["encoder"] * 3 + ["decoder"] * 3),
    "fnet": ("first", True, set(), [None] * 3),
    "albert": ("first", False, {"boolean"}, [None] * 3),
    "xlnet": ("last", False, {"zeros and ones"}, [None] * 3),
}
DIFFERENCES = ("at_0", "at_1", "near", "nearer")


def inspect(capsys, *words):
    """Exit status and output of the command."""
    status = main(["inspect", *map(str, words)])
    return status, capsys.readouterr().out


def checks_of(inspection, site):
    return [check for check in inspection.sites if check.site == site]


def saved(folder, model_type="bert", **changes):
    toy_model(model_type, **changes).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("model_type", FACTS)
def test_what_is_found(model_type):
    readout, padding_is_text, masks, stacks = FACTS[model_type]
    model = toy_model(model_type)
    found = inspect_model(model)
    assert (found.readout, found.padding_is_text, found.depth) == (readout, padding_is_text, len(stacks))
    assert {mask.kind for mask in found.masks} == masks
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert [check.site for check in found.sites] == [
        "word_embeddings",
        "embeddings",
        *["hidden"] * len(stacks),
        "pooled",
    ]
    hidden = checks_of(found, "hidden")
    assert [(check.layer, check.stack) for check in hidden] == list(enumerate(stacks))
    modules = dict(model.named_modules())
    assert all(path in modules for check in found.sites for path in check.modules)
    assert found.usable and found.reason is None
    for check in found.sites:
        assert check.exact and check.continuous and check.reason is None
        assert max(check.at_0, check.at_1) < 1e-4 and check.nearer < check.near


def test_a_shared_block_is_told_run_by_run():
    hidden = checks_of(inspect_model(toy_model("albert")), "hidden")
    assert [(check.run, check.runs) for check in hidden] == [(1, 3), (2, 3), (3, 3)]
    assert len({check.modules[0] for check in hidden}) == 1


def test_masks_name_the_argument_and_its_blocks():
    own, other = (mask for mask in inspect_model(toy_model("t5")).masks if mask.argument not in MASKED_BIASES)
    assert (own.argument, own.blocks) == ("attention_mask", [0, 1, 2])
    assert (other.argument, other.blocks) == ("encoder_attention_mask", [3, 4, 5])
    [bias] = inspect_model(toy_model("bert", "eager")).masks
    assert bias.kind == "additive bias"
    embeddings = inspect_model(toy_model("deberta-v2")).masks[0]
    assert (embeddings.module, embeddings.blocks) == ("deberta.embeddings", [])


def test_a_model_of_images_is_inspected_at_its_input():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **sizes))
    found = inspect_model(model)
    assert [check.site for check in found.sites] == ["input", "embeddings", "hidden", "hidden", "pooled"]
    assert all(check.exact and check.continuous for check in found.sites)
    assert found.padding_is_text is None and "padding" not in str(found)


def test_sounds_are_mixed_at_the_input_without_their_mask():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    convolutions = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = Wav2Vec2Config(**sizes, **convolutions, layerdrop=0.0, classifier_proj_size=16, num_labels=3)
    [check] = checks_of(inspect_model(Wav2Vec2ForSequenceClassification(config)), "input")
    assert check.exact and check.reason is None


def test_differences_are_those_that_mixup_makes(monkeypatch):
    """Without the rule for masks nothing below the last block is exact; the numbers are checked one by one."""
    monkeypatch.setattr(masks, "mix_keep", lambda keep, *rest: keep)
    model = toy_model("llama")
    found = inspect_model(model)
    # What leaves the last block is seen by no mask.
    assert [check.exact for check in found.sites] == [False, False, False, False, True, True]
    assert "more than 2% of their spread" in found.sites[0].reason
    mixup, batch = Mixup(model, plain_config(site="pooled")), probe_batch(model)
    partner = torch.arange(11).roll(1)
    with torch.no_grad():
        clean = logits_of(model(**batch))
        spread = (clean - clean[partner]).abs().max()
        for layer, check in enumerate(checks_of(found, "hidden")):
            for lam, end, name in ((0.0, clean[partner], "at_0"), (1.0, clean, "at_1")):
                with mixup.apply(MixupPlan(partner, torch.full((11,), lam), "hidden", layer), batch):
                    mixed = logits_of(model(**batch))
                expected = ((mixed - end).abs().max() / spread).item()
                assert getattr(check, name) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_model_in_which_only_pooled_is_exact_leaves_status_one(monkeypatch, capsys):
    def mix_nothing(mixing, values, *rest):
        mixing.reached = True
        return values

    monkeypatch.setattr(Mixing, "mix", mix_nothing)
    status, text = inspect(capsys, "bert")
    assert status == 1 and "can be mixed at   pooled\n" in text and "not exact" in text


def test_a_mixture_that_jumps_at_its_ends_is_told(monkeypatch):
    mix_keep = masks.mix_keep

    def either(keep, partner, lam, *rest):
        """The union of the two masks everywhere but at the ends."""
        return mix_keep(keep, partner, torch.where((lam > 0) & (lam < 1), 0.5, lam), *rest)

    monkeypatch.setattr(masks, "mix_keep", either)
    found = inspect_model(toy_model("llama"))
    [check] = checks_of(found, "embeddings")
    assert check.exact and not check.continuous and "they jump" in check.reason
    assert check.nearer == pytest.approx(check.near, rel=0.1) and check.near > 0.02
    assert "ends only" in str(found) and found.usable


def test_heads_that_read_padding_are_told_where_to_pad():
    """In a window of padding only, the first position of ModernBERT jumps; padded on the right it does not."""
    found = inspect_model(toy_model("modernbert"))
    assert all(check.exact and check.continuous for check in found.sites)
    assert "texts padded on the right" in str(found) and "texts padded on the left" in str(
        inspect_model(toy_model("xlnet"))
    )


def test_a_site_that_is_not_there_has_a_reason():
    found = inspect_model(toy_model("ibert"))
    [check] = checks_of(found, "word_embeddings")
    assert check.at_0 is None and not check.exact and "word_embeddings" in check.reason
    assert "not available" in str(found) and "no token lookup" in str(found)
    assert found.usable


class Constant(torch.nn.Module):
    def forward(self, states):
        return states.sum(-1, keepdim=True).expand(-1, 3) * 0


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("layerdrop=0.1", ("bart", {"encoder_layerdrop": 0.1})),
        ("no list of blocks", ("bert", {"num_hidden_layers": 0})),
    ],
)
def test_models_whose_blocks_cannot_be_mixed_have_a_reason_there(reason, changes):
    found = {check.site: check for check in inspect_model(toy_model(changes[0], **changes[1])).sites}
    assert reason in found["embeddings"].reason and found["pooled"].exact


def test_logits_that_depend_on_nothing_are_not_exact_anywhere():
    blind = toy_model("bert")
    blind.classifier = Constant()
    found = inspect_model(blind)
    assert not any(check.exact for check in found.sites)
    with pytest.raises(ValueError, match="logits do not depend on the output of any block"):
        Mixup(blind, {"site": "embeddings"})


def test_models_that_cannot_be_mixed_have_a_reason():
    unknown = toy_model("bert")
    unknown.config._attn_implementation = "paged|eager"
    reasons = {
        r"attn_implementation='paged\|eager'.*eager, sdpa": unknown,
        "pad_token_id is not set": toy_model("gpt2", pad_token_id=None),
        "Linear has no config": torch.nn.Linear(2, 2),
    }
    for reason, model in reasons.items():
        found = inspect_model(model)
        text = " ".join(str(found).split())
        assert not found.usable and found.sites == []
        assert found.depth == 0 and found.model_class == type(model).__name__
        assert found.reason in text and "can be mixed at no site" in text
        assert re.search(reason, found.reason)


def test_what_is_no_model_is_an_error():
    with pytest.raises(ValueError, match="model='bert': expected a model"):
        inspect_model("bert")


def test_the_model_is_left_as_it_was():
    model = toy_model("t5").train()
    model.classification_head.out_proj.weight.data.zero_()
    model.transformer.shared.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert inspect_model(model).usable
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["transformer.shared.weight"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_json_has_the_facts_of_the_text(capsys):
    status, text = inspect(capsys, "t5")
    other_status, output = inspect(capsys, "t5", "--json")
    facts = json.loads(output)
    assert status == other_status == 0 and facts["usable"]
    for name in ("source", "model_class", "attention", "read_at"):
        assert facts[name] in text
    assert f"{facts['parameters']:,} parameters in float32" in text
    assert "can be mixed at   word_embeddings, embeddings, hidden 0-5, pooled" in text
    assert f"attention_mask: {T5_MASK} (blocks 0-2)" in text
    for site in facts["sites"]:
        label = " ".join(str(site[name]) for name in ("site", "layer") if site[name] is not None)
        numbers = [f"{site[name]:.1e}" if site[name] else "0" for name in DIFFERENCES]
        [row] = [line for line in text.splitlines() if line.startswith(f"{label} ") and line.endswith("  exact")]
        assert row.split()[-5:] == [*numbers, "exact"]
        assert site["stack"] is None or f"({site['stack']})" in row


def test_json_holds_plain_finite_values(capsys):
    def refuse(word):
        raise AssertionError(word)

    for model_type in ("ibert", "modernbert"):
        facts = json.loads(inspect(capsys, model_type, "--json")[1], parse_constant=refuse)
        assert facts["model_type"] == model_type


@pytest.mark.parametrize("model_type", ["bart", "albert"])
def test_long_stacks_share_a_row(model_type):
    text = str(inspect_model(toy_model(model_type, num_hidden_layers=12, encoder_layers=12, decoder_layers=12)))
    rows = [line for line in text.splitlines() if line.startswith("hidden")]
    expected = {
        "bart": [
            "hidden 0-11 (encoder) after model.encoder.layers.0 ... 11",
            "hidden 12-23 (decoder) after model.decoder.layers.0 ... 11",
        ],
        "albert": ["hidden 0-11 after albert.encoder.albert_layer_groups.0,"],
    }
    assert [" ".join(row.split()[:-5]) for row in rows] == expected[model_type]
    assert ("run 1 of 12 ... 12 of 12" in " ".join(text.split())) == (model_type == "albert")
    assert max(map(len, text.splitlines())) <= 120


def test_a_block_that_differs_has_a_row_of_its_own(monkeypatch):
    measure = MixupPlan.to

    def fail_at_five(plan, device):
        if plan.layer == 5:
            raise ValueError("layer five is broken")
        return measure(plan, device)

    monkeypatch.setattr(MixupPlan, "to", fail_at_five)
    text = str(inspect_model(toy_model("bert", num_hidden_layers=24)))
    rows = [line.split() for line in text.splitlines() if line.startswith("hidden")]
    assert [row[1] for row in rows[:6]] == ["0", "1", "2", "3", "4", "5"] and rows[6][1] == "6-23"
    assert rows[5][-2:] == ["not", "available"] and rows[6][-1] == "exact"
    assert "hidden 5: layer five is broken" in text
    assert "hidden 0-4, 6-23" in text


def test_a_local_folder(tmp_path, capsys, monkeypatch):
    folder = saved(tmp_path / "mine")
    status, text = inspect(capsys, folder)
    assert status == 0 and f"folder {folder}" in " ".join(text.split())
    model, source = named_model(folder)
    assert json.loads(inspect(capsys, folder, "--json")[1])["sites"] == inspect_model(model).to_dict()["sites"]
    # A folder wins over the model type of its name.
    saved(tmp_path / "bert", "fnet")
    monkeypatch.chdir(tmp_path)
    facts = json.loads(inspect(capsys, "bert", "--json")[1])
    assert (facts["source"], facts["model_type"]) == ("folder bert", "fnet")


def test_a_new_head_is_the_same_each_time(tmp_path):
    toy_model("bert").bert.save_pretrained(tmp_path)
    one, other = (named_model(str(tmp_path))[0] for _ in range(2))
    assert torch.equal(one.classifier.weight, other.classifier.weight)


def test_a_folder_without_pad_token_takes_its_eos_token(tmp_path, capsys, caplog):
    status, _ = inspect(capsys, saved(tmp_path / "gpt2", "gpt2", pad_token_id=None))
    assert status == 0 and "its eos token 2 serves as one" in caplog.text


def test_options_reach_the_model(capsys):
    facts = json.loads(inspect(capsys, "bert", "--json", "--attn_implementation", "eager")[1])
    assert facts["attention"] == "eager" and facts["masks"][0]["kind"] == "additive bias"
    paths = ["bert.encoder.layer.0", "bert.encoder.layer.2"]
    facts = json.loads(inspect(capsys, "bert", "--json", "--blocks", *paths)[1])
    assert [site["modules"] for site in facts["sites"] if site["site"] == "hidden"] == [[path] for path in paths]
    status, text = inspect(capsys, "bert", "--blocks", "bert.encoder.layr")
    assert status == 1 and "'bert.encoder.layr' is not a module" in text


def test_bad_names_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    errors = {
        "bertt": "model='bertt': no such folder or model type, and no such model within reach on the hub. "
        "Did you mean 'bert'?",
        "nobody/nothing": "model='nobody/nothing': no such folder or model type",
        "demo:minilmm": "Did you mean 'demo:minilm'?",
        str(tmp_path / "empty"): "empty': Unrecognized model",
    }
    for name, message in errors.items():
        assert main(["inspect", name]) == 2
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message in lines[0] and not printed.out
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "bert", "--attn_implementation", "flash"])
    assert "eager" in capsys.readouterr().err


def test_a_flash_kernel_is_inspected_and_one_that_is_not_installed_is_one_line(capsys):
    words = ("bert", "--attn_implementation", "flash_attention_2")
    assert main(["inspect", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "attn_implementation='flash_attention_2': FlashAttention2" in lines[0]
    if not torch.accelerator.is_available():
        assert main(["inspect", "bert", "--attn_implementation", "flex_attention"]) == 2
        assert "error: attn_implementation='flex_attention': needs a GPU" in capsys.readouterr().err
    with flash_stand_in():
        status, printed = inspect(capsys, *words)
    assert status == 0 and "flash_attention_2" in printed


def test_help_needs_no_torch():
    code = """if True:
        import sys
        from hf_mixup.cli.main import main
        try:
            main(["inspect", "--help"])
        except SystemExit:
            print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "a folder" in done.stdout and done.stdout.endswith("False\n")


def test_a_token_classifier_is_inspected_as_one(capsys, tmp_path):
    """Texts of both lengths: what is read of a mixture is what the text of that end has."""
    model = toy_model("bert", auto=AutoModelForTokenClassification)
    found = inspect_model(model)
    assert found.readout == "tokens" and all(check.exact and check.continuous for check in found.sites)
    assert max(check.at_0 for check in found.sites) < 1e-4 and max(check.nearer for check in found.sites) < 1e-2
    model.save_pretrained(tmp_path)
    status, said = inspect(capsys, tmp_path)
    assert status == 0 and "BertForTokenClassification" in said and "head reads        every token" in said
