PYTHON ?= python3
DEMO := .venv/demo
TEST := .venv/test
LOWEST := .venv/lowest
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test slow lowest clean

quickstart: $(DEMO)/installed
	$(DEMO)/bin/hf-mixup train configs/quickstart.yaml

test: $(TEST)/installed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy
	$(TEST)/bin/python -m pytest -n 2

slow: $(TEST)/installed
	$(TEST)/bin/python -m pytest -m slow

lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -n 2

$(DEMO)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(TEST)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,plots,test,dev]'
	touch $@

$(LOWEST)/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[demo,plots,test]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
