"""The recipes travel with the package as `hf_mixup.config.recipe_files`."""
