"""What label follows: targets and losses, of one label per example (`task`) and of one per token (`token_task`)."""
