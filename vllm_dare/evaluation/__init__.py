"""What drafts are worth: measured without a model, and on a real engine."""
