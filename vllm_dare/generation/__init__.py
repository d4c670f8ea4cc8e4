"""The nightly batch: a file of prompts in, a file of knowledge out, safe against interruption."""
