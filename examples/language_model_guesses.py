"""Class probabilities of texts by a language model, to be given as guesses for texts without labels.

    python examples/language_model_guesses.py TEXTS.csv GUESSED.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct \
        --prompt 'Review: {}\nSentiment:' --words negative positive

Each text is put into the prompt, and the model's next word decides: class k is as likely as the k-th word. Nothing is
trained. If TEXTS has labels, it says how many of the guesses are right: try it on your labelled texts first.
"""

import argparse

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def class_probabilities(model, tokenizer, texts, prompt, words, max_length=64, batch_size=16):
    """The probabilities of the words after each text in the prompt, normalized: `(texts, words)`."""
    first = [tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in words]
    if len(set(first)) < len(words):
        raise ValueError(f"words={words}: two begin with the same token; take others.")
    cut = tokenizer(texts, truncation=True, max_length=max_length, add_special_tokens=False).input_ids
    prompts = [prompt.format(text) for text in tokenizer.batch_decode(cut)]
    # On the right, because positions may count from the left.
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token
    # Texts of one length together, so that little is padded.
    order = sorted(range(len(texts)), key=lambda number: len(cut[number]))
    found = torch.empty(len(texts), len(words))
    for start in range(0, len(texts), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer([prompts[row] for row in rows], padding=True, return_tensors="pt").to(model.device)
        ends, place = (batch["attention_mask"].sum(1) - 1).unique(return_inverse=True)
        with torch.no_grad():
            logits = model(**batch, logits_to_keep=ends).logits[range(len(rows)), place]
        found[rows] = logits[:, first].float().softmax(-1).cpu()
    return found


def aligned(probabilities):
    """As if all classes were as frequent: a language model likes some words better than others, whatever the text."""
    shares = probabilities / probabilities.mean(0)
    return shares / shares.sum(1, keepdim=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("texts", help="CSV with a column text, and a column label if the classes are known")
    parser.add_argument("guessed", help="JSON lines that are written: text, and label: a probability for each class")
    parser.add_argument("--model", required=True)
    parser.add_argument("--gguf", help="the GGUF file in that folder, if the weights are one")
    parser.add_argument("--prompt", required=True, help="with {} for the text and \\n for a new line")
    parser.add_argument("--words", nargs="+", required=True, help="one for each class, in the order of the labels")
    given = parser.parse_args()
    rows = pd.read_csv(given.texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(given.model, gguf_file=given.gguf)
    model = AutoModelForCausalLM.from_pretrained(given.model, gguf_file=given.gguf, dtype="auto").eval().to(device)
    texts, prompt = rows["text"].astype(str).tolist(), given.prompt.replace("\\n", "\n")
    guesses = class_probabilities(model, tokenizer, texts, prompt, given.words)
    pd.DataFrame({"text": texts, "label": guesses.tolist()}).to_json(given.guessed, orient="records", lines=True)
    if "label" in rows:
        classes = torch.from_numpy(pd.factorize(rows["label"], sort=True)[0])
        right = (aligned(guesses).argmax(1) == classes).float().mean()
        print(f"{right:.1%} of {len(rows)} guesses are right.")


if __name__ == "__main__":
    main()
