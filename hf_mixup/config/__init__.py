"""What the user says: the fields of a config, their checks, recipes and YAML files."""
