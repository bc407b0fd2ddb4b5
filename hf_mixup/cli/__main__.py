"""`python -m hf_mixup.cli`, the same as `hf-mixup`."""

from hf_mixup.cli.main import main

raise SystemExit(main())
