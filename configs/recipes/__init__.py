"""The recipes travel with the package as `hf_mixup.recipes`."""
