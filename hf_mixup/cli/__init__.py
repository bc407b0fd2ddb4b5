"""The `hf-mixup` command."""
