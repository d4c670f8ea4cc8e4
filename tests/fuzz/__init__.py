"""Made-up input by the million: a case is its seed and its number, so that each can be run again alone."""
