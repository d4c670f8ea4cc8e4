"""Prompts for recommendation knowledge, from tables of interactions, items and users."""
