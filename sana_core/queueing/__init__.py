"""Many edits on one or more ComfyUI servers, over their API: every clip with every prompt, each done once."""
