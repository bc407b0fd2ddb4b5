"""Comparing methods on one's own data: the `hf-mixup compare` and `hf-mixup report` commands."""
