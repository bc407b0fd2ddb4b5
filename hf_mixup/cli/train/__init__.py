"""`hf-mixup train`."""
