"""The ways in: the trainer, the model wrapper, the collator."""
