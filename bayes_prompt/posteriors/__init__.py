"""What is known now about N prompts: one state for each model, one protocol in `base`."""
