PYTHON ?= python3
DEMO := .venv/demo
TEST := .venv/test
LOWEST := .venv/lowest
NEWEST := .venv/newest
# transformers+torch between the two; 5.17 with 2.11 is a common image for GPUs.
HOSTS := 5.12.1+2.11.0 5.15.0+2.11.0 5.17.0+2.11.0 5.20.2+2.11.0 5.22.2+2.11.0
SMOKE := tests/test_host.py tests/test_mixup.py tests/forward/test_hooks.py tests/forward/test_saliency.py \
    tests/training/test_trainer.py tests/training/test_model.py tests/distributed/test_ddp_training.py
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test docs slow lowest newest hosts notebooks clean

quickstart: $(DEMO)/installed
	$(DEMO)/bin/hf-mixup train configs/quickstart.yaml

test: $(TEST)/installed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy
	$(TEST)/bin/python -m pytest -n 2

docs: $(TEST)/installed
	$(TEST)/bin/python -m sphinx -W --keep-going -q docs docs/_build/html

slow: $(TEST)/installed
	$(TEST)/bin/python -m pytest -m slow

lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -n 2

newest: $(NEWEST)/installed
	$(NEWEST)/bin/python -m pytest -n 2

hosts: $(HOSTS:%=.venv/%/installed)
	for host in $(HOSTS); do .venv/$$host/bin/python -m pytest -n 2 $(SMOKE) || exit 1; done

notebooks: $(TEST)/installed
	$(TEST)/bin/python -m tests.test_notebooks

$(DEMO)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(TEST)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,plots,test,trainers,docs,dev]'
	touch $@

$(LOWEST)/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[demo,plots,test]'
	touch $@

$(NEWEST)/installed: pyproject.toml
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --editable '.[demo,plots,test,trainers]'
	touch $@

$(HOSTS:%=.venv/%/installed): .venv/%/installed: pyproject.toml
	$(PYTHON) -m venv .venv/$*
	.venv/$*/bin/python -m pip install --quiet --editable '.[demo,plots,test]' \
	    transformers==$(firstword $(subst +, ,$*)) torch==$(lastword $(subst +, ,$*))
	touch $@

clean:
	rm -rf .venv build dist docs/_build *.egg-info
