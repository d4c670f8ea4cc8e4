"""Batches and pool building on a Ray cluster; nothing here is imported unless one is asked for."""
