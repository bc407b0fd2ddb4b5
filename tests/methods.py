"""What is said of every recipe; `python -m tests.methods` writes the table of it in the docs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "configs/recipes"
DOCS = ROOT / "docs/methods.md"
BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"

AUTHORS = "the authors' code was read"
OTHERS = "no code of the authors was found; implementations by others were read"
ABSTRACT = "no code of the authors was found; only the abstract was read"
OWN = "no paper"
# What these mix are the pixels of images; all others mix texts as well.
OF_PIXELS = ("input_mixup", "cutmix")
# What these need is MixupTrainer(unlabeled_dataset=...).
OF_UNLABELED = ("few_labels", "mixtext", "ict", "softmatch", "mean_teacher")
# What these need is labels per token.
OF_TOKENS = ("intra_lada", "seq_mix")


@dataclass(frozen=True)
class Method:
    """What the docs say of a recipe.

    Args:
        paper (`str`): authors, year, title, venue; or what it is, where there is no paper.
        formula (`str`): what is mixed, and what label follows.
        suits (`str`): the tasks that it is meant for.
        source (`str`): where its definition was read.
        notes (`str`): what follows the paper or the authors' code, and what does not.
        passes (`tuple[int, int]`): forward and backward passes of a training step.
    """

    paper: str
    formula: str
    suits: str
    source: str
    notes: str
    passes: tuple[int, int] = (1, 1)


METHODS = {
    "default": Method(
        "Chen, Yang, Yang 2020, as `tmix`; Wen, Jerfel, Muller, Dusenberry, Snoek, Lakshminarayanan, Tran 2021, "
        "Combining Ensembles and Data Augmentation Can Harm Your Calibration, ICLR (CAMixup)",
        "as `tmix`: lambda ~ Beta(2, 2), then max(lambda, 1 - lambda); for each example, with a partner of another "
        "class. Of the partner's weight a share s "
        "that follows g, the confidence less the accuracy of held-out examples, with standard error e: at each check "
        "s += 10 g max(0, 1 - (1.5 e / g)^2) if g > 0, else s += 10 g, within 0 and 1; halved if g does not exceed "
        "that of the training examples; 0 in the first pass over these",
        "a start for any text, image or sound",
        OWN,
        "CAMixup turns mixup on or off for each class after each epoch; here one strength moves for all, by the size "
        "of the surplus and its standard error. A partner of another class repairs more at the same strength: pairs of "
        "one class make a model surer. See [results.md](results.md).",
    ),
    "fixed": Method(
        "Chen, Yang, Yang 2020, as `tmix`",
        "as `tmix`: lambda ~ Beta(2, 2), then max(lambda, 1 - lambda); for each example, growing over 100 batches",
        "loops of your own and other trainers, where nobody says how sure the model is of held-out examples",
        OWN,
        "`tmix` with a lambda for each example, not for the batch, and mixing that grows over the first 100 batches.",
    ),
    "input_mixup": Method(
        "Zhang, Cissé, Dauphin, Lopez-Paz 2018, mixup: Beyond Empirical Risk Minimization, ICLR",
        "the inputs; lambda ~ Beta(1, 1)",
        "images and sounds; not token ids",
        AUTHORS,
        "As their CIFAR-10 code: one lambda a batch, alpha 1, a permutation of the batch that may pair an "
        "example with itself.",
    ),
    "cutmix": Method(
        "Yun, Han, Oh, Chun, Choe, Yoo 2019, CutMix: Regularization Strategy to Train Strong Classifiers with "
        "Localizable Features, ICCV",
        "a random box, sqrt(1 - lambda) of the height and the width, gives way to that of the partner; y by the share "
        "replaced; lambda ~ Beta(1, 1)",
        "images",
        AUTHORS,
        "The box, its center at any pixel, its even sides and alpha 1 are as in their code, and every batch is mixed, "
        "as in its command for ImageNet (for CIFAR half of them, `prob: 0.5`). Theirs has one box a batch; here each "
        "image has a box of its own, of one lambda a batch. The label follows the pixels that were in fact replaced, "
        "the box being cut off at the border, which their code does since its first correction.",
    ),
    "word_mixup": Method(
        "Guo, Mao, Zhang 2019, Augmenting Data with Mixup for Sentence Classification: An Empirical Study, "
        "arXiv 1905.08941",
        "the word embeddings of each position; lambda ~ Beta(1, 1)",
        "text classification",
        OTHERS,
        "The paper averages zero-padded embedding matrices of CNNs and LSTMs. Here a position that only one "
        "text has keeps that text's embedding, position and segment lookups follow, and the mask is "
        "interpolated. alpha 1, and one lambda per example, are not verified.",
    ),
    "sent_mixup": Method(
        "Guo, Mao, Zhang 2019, as `word_mixup`",
        "the sentence vector before the last linear layer; lambda ~ Beta(1, 1)",
        "text classification; the least intrusion",
        OTHERS,
        "Where the last layer is linear, mixing its inputs is mixing its outputs, and so it is done. alpha 1, "
        "and one lambda per example, are not verified.",
    ),
    "mixup_transformer": Method(
        "Sun et al. 2020, Mixup-Transformer: Dynamic Data Augmentation for NLP Tasks, COLING",
        "the sentence vector; lambda = 1/2; in the second half of the steps only",
        "text classification",
        ABSTRACT,
        "The site, lambda = 1/2 and the second half of the training are from memory of the paper, not verified.",
    ),
    "manifold": Method(
        "Verma et al. 2019, Manifold Mixup: Better Representations by Interpolating Hidden States, ICML",
        "after a block drawn each batch; lambda ~ Beta(2, 2)",
        "classification of any kind",
        AUTHORS,
        "As their code: one lambda, one layer and one permutation a batch; alpha 2 is what it uses for hidden "
        "layers. Theirs draws the input or one of the first two of three residual stages; here the entrance "
        "of the first block or the end of one of the first three quarters. Their loss is a binary "
        "cross-entropy of the softmax; here it is the cross-entropy.",
    ),
    "tmix": Method(
        "Chen, Yang, Yang 2020, MixText: Linguistically-Informed Interpolation of Hidden Space for "
        "Semi-Supervised Text Classification, ACL",
        "after block 7, 9 or 12 of 12; lambda ~ Beta(2, 2), then max(lambda, 1 - lambda)",
        "text classification with few labels",
        AUTHORS,
        "The layers, one draw a batch and max(lambda, 1 - lambda) are as in their code, alpha 2 as in the "
        "README's command. Theirs passes no attention mask, so padding is attended to and averaged in; here "
        "both texts' masks are interpolated. MixText's unlabelled part is the recipe `mixtext`.",
    ),
    "embed_mix": Method(
        "Yoon, Kim, Park 2021, the baseline EmbedMix of SSMix, Findings of ACL",
        "what enters the first block; lambda ~ Beta(0.2, 0.2), then max(lambda, 1 - lambda)",
        "text classification",
        AUTHORS,
        "Their training adds the clean loss of both texts in equal parts (`clean_weight: 0.5`, which takes a "
        "second pass), starts from a fine-tuned model, and pairs the two halves of a batch. The recipe has no "
        "clean terms and a random permutation.",
    ),
    "span_mix": Method(
        "after Yun et al. 2019, CutMix: Regularization Strategy to Train Strong Classifiers with Localizable "
        "Features, ICCV",
        "a random span of floor((1 - lambda) n) of n tokens gives way to one of the partner; y by the share "
        "replaced; lambda ~ Beta(1, 1)",
        "text classification; runs in a collator",
        AUTHORS,
        "CutMix's rule in one dimension: the label follows the share that was in fact replaced, which "
        "CutMix's code does since its first correction. At least one token is replaced; the special tokens at "
        "both ends and between two texts stay; of a pair of texts the first takes from the first. A partner "
        "that is too short leaves the text as it is.",
    ),
    "ssmix": Method(
        "Yoon, Kim, Park 2021, SSMix: Saliency-Based Span Mixup for Text Classification, Findings of ACL",
        "the least salient tenth of the tokens gives way to the partner's most salient span; y by the share "
        "replaced; half of the loss is clean",
        "text classification, alone or in pairs",
        AUTHORS,
        "Saliency is the norm of the loss's gradient where the text enters the first block, as theirs up to a "
        "factor. They mix both directions of pairs from the two halves of a batch and average four losses; "
        "here everybody has a partner that is somebody else, and clean and mixed loss count equally, which is "
        "the same mean. Saliency of a pair of texts is taken from the whole pair, theirs from each text "
        "alone. "
        "The third pass is for the saliency; its backward pass computes no gradients of parameters.",
        (3, 3),
    ),
    "nonlinear_mixup": Method(
        "after Guo 2020, Nonlinear Mixup: Out-Of-Manifold Data Augmentation for Text Classification, AAAI",
        "the word embeddings, a lambda for each of their dimensions, each ~ Beta(1, 1); y with their mean",
        "text classification; a study of nonlinear mixing",
        ABSTRACT,
        "Not a reproduction. The paper has a lambda for each word and dimension (from memory) and learns the "
        "policy of the label from the mixed text. Here the lambdas are shared by the words, and the label "
        "follows their mean, which is close to 1/2 in a wide model.",
    ),
    "reg_mixup": Method(
        "Pinto et al. 2022, RegMixup, NeurIPS",
        "what enters the first block; lambda ~ Beta(10, 10); half of the loss is clean",
        "classification; calibration and shifted data",
        AUTHORS,
        "As their code: one lambda a batch, alpha 10 (CIFAR-100; 20 for CIFAR-10), the mean of clean and "
        "mixed loss. Theirs mixes images in one pass over the doubled batch; here the site is where the text "
        "enters the first block.",
        (2, 2),
    ),
    "c_mixup": Method(
        "Yao, Wang, Zhang, Zou, Finn 2022, C-Mixup: Improving Generalization in Regression, NeurIPS",
        "the sentence vector; partner j with probability ~ exp(-(y_i - y_j)^2 / (2 bandwidth^2)); lambda ~ Beta(2, 2)",
        "regression",
        AUTHORS,
        "The kernel, alpha 2 and one lambda a batch are as in their code. Theirs draws the partner from the "
        "whole training set, the example itself included, which is then the likeliest; here it comes from the "
        "batch and is somebody else. The bandwidth is in units of the label: set it. Theirs mixes inputs or a "
        "hidden layer; on pairs of sentences (STS-B, 600 pairs, 225 steps, one seed) Pearson's r was 0.16 at "
        "`embeddings`, 0.25 after block 5 of 6, 0.49 here, and 0.47 without mixup.",
    ),
    "inter_lada": Method(
        "Chen, Wang, Tian, Yang, Yang 2020, Local Additivity Based Data Augmentation for Semi-supervised NER, EMNLP",
        "hidden states after the 8th, 9th or 10th of 12 blocks, position by position; half of the partners are one of "
        "the 5 nearest texts, the others any; lambda ~ Beta(60, 1.5), one per batch",
        "labels per token; text classification",
        AUTHORS,
        "Near are the texts of the batch whose mean token embeddings have the largest cosine; in the paper those of "
        "the whole training set, by a sentence encoder. Of two texts of different lengths each token counts by the "
        "weight of its text; their code gives padding and the special tokens classes of their own. The partner weighs "
        "2.4 % on average, as in their code.",
    ),
    "intra_lada": Method(
        "Chen, Wang, Tian, Yang, Yang 2020, Local Additivity Based Data Augmentation for Semi-supervised NER, EMNLP",
        "h_t' = lambda h_t + (1 - lambda) h_p(t) of the tokens of one text after the last layer, p a permutation of "
        "those with a label, y_t the same; lambda ~ Beta(60, 1.5), one per batch",
        "labels per token: entities, chunks, tags",
        AUTHORS,
        "Where the last layer is linear, mixing its inputs is mixing its outputs, and so it is done. Their code "
        "mixes in place, so that a token may be mixed with one that is mixed already, and its label not; here all are "
        "mixed with what the tokens were. The partner weighs 2.4 % on average, as in their code.",
    ),
    "seq_mix": Method(
        "Zhang, Yu, Zhang 2020, SeqMix: Augmenting Active Sequence Labeling via Sequence Mixup, EMNLP",
        "an entity gives way to one of the partner that is as long in tokens, and its labels with it; half of the "
        "batches; no lambda",
        "labels per token: entities and slots",
        ABSTRACT,
        "SeqMix mixes parts of two texts that are as long by lambda, and takes the nearest word of each mixture; it "
        "scores what came of it with a language model. Here a part is a whole entity, and is exchanged, so that every "
        "token is a word and every label a class, and nothing is scored. A pair without entities that are as long "
        "stays as it is.",
    ),
    "intra_class": Method(
        "none: LISA's partners of the same label, without groups",
        "what enters the first block; partner of the same class, so y stays; lambda ~ Beta(1, 1)",
        "classification where labels must stay hard",
        OWN,
        "Of several labels a text, partners share at least one, and the labels are mixed.",
    ),
    "lisa": Method(
        "Yao, Wang, Li, Zhang, Liang, Zou, Finn 2022, Improving Out-of-Distribution Robustness via Selective "
        "Augmentation, ICML",
        "the sentence vector; partner of the same label and another group, or of the same group and another "
        "label, by a coin each batch; lambda ~ Beta(2, 2)",
        "classification across domains; needs a column of groups",
        AUTHORS,
        "The coin, its 0.5, alpha 2, one lambda per example and the site of its text tasks are as in their "
        "code. Theirs draws partners from the whole training set; here from the batch, and whom nobody fits "
        "is not mixed. Their code for text draws no coin: it takes partners of one group, or with a flag of "
        "one label.",
    ),
    "balanced": Method(
        "none: partners for imbalanced classes",
        "what enters the first block; every class of the batch as likely for the partner; lambda ~ Beta(0.4, 0.4)",
        "classification of imbalanced classes",
        OWN,
        "Related to samplers that balance classes; here only the partners are balanced.",
    ),
    "remix": Method(
        "Chou, Chang, Pan, Wei, Juan 2020, Remix: Rebalanced Mixup, ECCV workshops",
        "what enters the first block, lambda ~ Beta(1, 1); y with lambda_y = 0 if n_i / n_j >= kappa and "
        "lambda < tau, 1 if n_i / n_j <= 1 / kappa and 1 - lambda < tau, else lambda",
        "classification of imbalanced classes",
        OTHERS,
        "There is no code of the authors; the rule, kappa 3 and tau 0.5 are as others implement it, who also "
        "weigh the classes late in the training; here that is said as well, `class_weights: {0: null, 160: [1, 4]}`.",
    ),
    "warped": Method(
        "Bouniot, Mozharovskyi, d'Alché-Buc, Tailoring Mixup to Data for Calibration, ICLR 2025 (first version 2023)",
        "what enters the first block; lambda ~ Beta(tau, tau), tau = exp(-(d / mean d - 1) / (2 w^2)), d the "
        "squared distance of the pair",
        "classification; calibration",
        AUTHORS,
        "The kernel and w = 0.5 are as in their code, read in a copy. Theirs measures d with a forward pass "
        "of its own on the clean batch; here d is that of the pair's mean states where they are mixed, so no "
        "pass is added, and at `embeddings` it tells less of the meaning than in a deep layer. Theirs warps a "
        "Beta(1, 1) number, by default by another function than the inverse that gives Beta(tau, tau).",
    ),
    "aum_guided": Method(
        "after Park and Caragea 2022, On the Calibration of Pre-trained Language Models using Mixup Guided by "
        "Area Under the Margin and Saliency, ACL",
        "the sentence vector; partner from the other half of the batch by area under the margin; lambda ~ "
        "Beta(0.4, 0.4); four fifths of the loss are clean",
        "text classification; calibration",
        AUTHORS,
        "Without saliency: their code picks the partners most and least similar in saliency, here the partner "
        "is drawn. Theirs takes margins from a run of three epochs before and splits at the median of the "
        "training set; here they are recorded as training goes and split the batch. The pooled state is "
        "mixed, which is on the logits, as in their code. 0.8 clean is theirs.",
        (2, 2),
    ),
    "noisy_feature": Method(
        "Lim, Erichson, Utrera, Xu, Mahoney 2022, Noisy Feature Mixup, ICLR",
        "z mixed after a block drawn each batch, lambda ~ Beta(1, 1); z (1 + 0.2 b U) + 0.4 rms(z) b' N; U ~ "
        "Uniform(-1, 1), N ~ Normal(0, 1), b, b' ~ Beta(2, 5)",
        "classification of any kind; robustness to noise",
        AUTHORS,
        "The settings are those of the README, the noise comes after mixing as in their code. Their additive "
        "noise is absolute; here it is relative to the root mean square of what is mixed, since the scale of "
        "hidden states differs from model to model.",
    ),
    "mixup_io": Method(
        "Wang, Li, Zhao, Heng, Zhang 2023, On the Pitfall of Mixup for Uncertainty Calibration, CVPR",
        "what enters the first block; y that of the larger weight; lambda ~ Beta(1, 1)",
        "a study of what mixed labels do",
        OTHERS,
        "As implemented by others: the label is not mixed.",
    ),
    "few_labels": Method(
        "after Chen, Yang, Yang 2020, as `tmix`; Chen et al. 2023, as `softmatch`; Tarvainen and Valpola 2017, as "
        "`mean_teacher`",
        "as `tmix`: lambda ~ Beta(2, 2), then max(lambda, 1 - lambda); labelled and unlabelled rows are partners. The "
        "moving average of the weights guesses p; q = p P / mean p, normalised, P the shares of the labels; the target "
        "is q^2, normalised; a row weighs as `softmatch` weighs it; from the middle of the training on",
        "few labels and many texts without labels",
        OWN,
        "The parts are those of other methods; which of them are here, and when they begin, was chosen on three sets "
        "(see [unlabelled.md](unlabelled.md)). Guesses begin in the middle of the training because they are noise "
        "before the labels are learned.",
    ),
    "mixtext": Method(
        "Chen, Yang, Yang 2020, as `tmix`",
        "as `tmix`, lambda ~ Beta(16, 16), then max(lambda, 1 - lambda); labelled and unlabelled rows are partners. "
        "The model guesses p; the target is p^2, normalised; the weight of unlabelled rows rises to 1 at the end",
        "few labels and many texts without labels",
        AUTHORS,
        "alpha 16, the layers, the temperature of 1/2, the ramp over the whole training and two unlabelled rows per "
        "labelled one are those of their command. Theirs adds two back-translations of each unlabelled text, of which "
        "none is here, and a copy of the text that is mixed with itself; guesses with dropout on, here off; passes no "
        "attention mask. There the weight of a pair is that of its first row; here it is mixed as labels are. The "
        "entropy term is left out: no command of theirs turns it on.",
    ),
    "ict": Method(
        "Verma, Lamb, Kannala, Bengio, Lopez-Paz 2019, Interpolation Consistency Training for Semi-Supervised "
        "Learning, IJCAI",
        "what enters the first block; lambda ~ Beta(1, 1); unlabelled rows are partners of unlabelled ones, labelled "
        "of labelled. The moving average of the weights guesses p; the mixture of two rows gets that of their "
        "guesses, by the mean squared error",
        "a study of consistency; images as much as texts",
        AUTHORS,
        "Decay 0.999, Beta(1, 1), mixed labelled rows, the squared error and its weight of 100 are those of their "
        "command for CIFAR-10. Theirs mixes the logits of the average and then takes their softmax; here their "
        "probabilities are mixed. Theirs rises as a sigmoid, here on a line; the average guesses with dropout there, "
        "without it here. Images there, the entrance of the first block here.",
    ),
    "softmatch": Method(
        "Chen, Tao, Fan, Wang, Wang, Schiele, Xie, Raj, Savvides 2023, SoftMatch: Addressing the Quantity-Quality "
        "Trade-off in Semi-supervised Learning, ICLR",
        "no mixing. The model guesses p; q = p / mean p, normalised; the target is the likeliest class of q; a row "
        "weighs exp(-max(0, m - max q)^2 / (2 (s / 2)^2)), m and s being running mean and spread of max q; the model "
        "sees the row with 15 % of its tokens masked",
        "few labels and many texts without labels",
        AUTHORS,
        "The weight, n_sigma 2, the uniform alignment and hard targets are those of their code for texts. The second "
        "view there is a back-translation, here masked tokens. Theirs takes the likeliest class of p; here that of q. "
        "Running means reach over a tenth of the training here, over 1,000 steps there.",
    ),
    "mean_teacher": Method(
        "Tarvainen and Valpola 2017, Mean Teachers Are Better Role Models: Weight-averaged Consistency Targets "
        "Improve Semi-supervised Deep Learning Results, NeurIPS",
        "no mixing. The moving average of the weights guesses p; the model, with its dropout, learns p by the mean "
        "squared error",
        "a baseline for texts without labels",
        OTHERS,
        "The weight of 50 and its rise over 40 % of the training are those of USB (Wang et al. 2022). There the "
        "average guesses with dropout, here without; labelled rows have no consistency term here.",
    ),
}


def settings(name: str) -> dict[str, Any]:
    """The fields in which the recipe differs from the default."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


def recipes() -> list[str]:
    """Every YAML, the table's order first."""
    files = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    return [*(name for name in METHODS if name in files), *(name for name in files if name not in METHODS)]


def said(value: Any) -> str:
    """A value as YAML writes it in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip()


def row(name: str) -> str:
    method = METHODS[name]
    given = ", ".join(f"`{field}: {said(value)}`" for field, value in settings(name).items()) or "none"
    forward, backward = method.passes
    link = f"[`{name}`](../configs/recipes/{name}.yaml)"
    cells = [link, method.paper, method.formula, given, f"{forward} + {backward}", method.suits]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    head = "| recipe | paper | formula | settings | passes | for |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([head, *(row(name) for name in recipes())])


def wrapped(item: str) -> str:
    """An item of a list in lines of the width of the docs."""
    return fill(item, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def notes() -> str:
    return "\n".join(wrapped(f"- `{name}`: {METHODS[name].notes}") for name in recipes())


def sources() -> str:
    lines = []
    for source in (AUTHORS, OTHERS, ABSTRACT, OWN):
        names = ", ".join(f"`{name}`" for name in recipes() if METHODS[name].source == source)
        lines.append(wrapped(f"- {source[0].upper()}{source[1:]}: {names}."))
    return "\n".join(lines)


def written(text: str) -> str:
    """The text of the docs with its generated parts made anew."""
    for name, part in (("table", table()), ("sources", sources()), ("notes", notes())):
        begin, end = BEGIN.format(name), END.format(name)
        text = f"{text.split(begin)[0]}{begin}\n{part}\n{end}{text.split(end)[1]}"
    return text


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(recipes())} recipes in {DOCS.relative_to(ROOT)}")
