"""Commands that run beside the device, each a program of its own. Nothing of worker needs them."""
