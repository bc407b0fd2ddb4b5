"""`hf-mixup inspect`."""
