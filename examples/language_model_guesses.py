"""Class probabilities of texts by a language model, to be given as guesses for texts without labels.

    python examples/language_model_guesses.py TEXTS.csv GUESSED.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct \
        --prompt 'Review: {}\nSentiment:' --words negative positive

Each text is put into the prompt, and the model's next word decides: class k is as likely as the k-th word. Nothing is
trained. If TEXTS has labels, it says how many of the guesses are right: try it on your labeled texts first.
"""

import argparse

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def first_tokens(tokenizer, words):
    """The token that each word begins with after another word."""
    before = tokenizer("a", add_special_tokens=False).input_ids
    tokens = [tokenizer(f"a {word}", add_special_tokens=False).input_ids[len(before)] for word in words]
    if len(words) < 2 or len(set(tokens)) < len(words):
        raise ValueError(f"words={words}: expected two or more that begin with different tokens.")
    return tokens


def class_probabilities(model, tokenizer, texts, prompt, words, max_length=64, batch_size=16):
    """The probabilities of the words after each text in the prompt, normalized: `(texts, words)`."""
    if prompt.count("{}") != 1:
        raise ValueError(f"prompt={prompt!r}: expected one {{}}, which the text takes the place of.")
    words = first_tokens(tokenizer, words)
    cut = tokenizer(texts, truncation=True, max_length=max_length, add_special_tokens=False).input_ids
    prompts = [prompt.replace("{}", text) for text in tokenizer.batch_decode(cut)]
    # On the right, because positions may count from the left.
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token
    ends = int(tokenizer("a").input_ids[-1] == tokenizer.eos_token_id)
    # Texts of one length together, so that little is padded.
    order = sorted(range(len(texts)), key=lambda number: len(cut[number]))
    found = torch.empty(len(texts), len(words))
    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([prompts[row] for row in rows], padding=True, return_tensors="pt").to(model.device)
        last = batch["attention_mask"].sum(1) - 1 - ends
        with torch.no_grad():
            logits = model(**batch).logits[range(len(rows)), last]
        found[rows] = logits[:, words].float().softmax(-1).cpu()
    return found


def share_of_right(probabilities, labels):
    """How many guesses are right, as if all classes were as frequent, and of how many rows.

    A language model likes some words better than others, whatever the text; in training, this is taken out as well.
    """
    classes, names = pd.factorize(labels.where(labels != ""), sort=True)
    if len(names) != probabilities.shape[1]:
        raise ValueError(f"words: {probabilities.shape[1]}, and the labels are of {len(names)} classes: {list(names)}.")
    known = torch.from_numpy(classes >= 0)
    shares = probabilities / probabilities.mean(0)
    return (shares.argmax(1) == torch.from_numpy(classes))[known].float().mean(), known.sum(), names


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", help="CSV with a column text, and a column label if the classes are known")
    parser.add_argument("guessed", help="JSON lines that are written: text, and label: a probability for each class")
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf", help="the GGUF file in that folder, if the weights are one")
    parser.add_argument("--prompt", required=True, help="with {} for the text and \\n for a new line")
    parser.add_argument("--words", nargs="+", required=True, help="one for each class, in the order of the classes")
    parser.add_argument("--max_length", type=int, default=64, help="tokens of a text; the rest is cut")
    given = parser.parse_args()
    rows = pd.read_csv(given.texts, keep_default_na=False)
    if "text" not in rows:
        parser.error(f"{given.texts}: no column text; its columns are {', '.join(rows.columns)}")
    rows = rows[rows["text"].astype(str).str.strip() != ""]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(given.model, gguf_file=given.gguf)
    model = AutoModelForCausalLM.from_pretrained(given.model, gguf_file=given.gguf, dtype="auto").eval().to(device)
    texts, prompt = rows["text"].astype(str).tolist(), given.prompt.replace("\\n", "\n")
    guesses = class_probabilities(model, tokenizer, texts, prompt, given.words, given.max_length)
    pd.DataFrame({"text": texts, "label": guesses.tolist()}).to_json(given.guessed, orient="records", lines=True)
    if "label" in rows and (rows["label"] != "").any():
        share, number, names = share_of_right(guesses, rows["label"])
        pairs = ", ".join(f"{word} for {name}" for word, name in zip(given.words, names, strict=True))
        print(f"{pairs}: {share:.1%} of {number} guesses are right, if all classes are as frequent.")


if __name__ == "__main__":
    main()
