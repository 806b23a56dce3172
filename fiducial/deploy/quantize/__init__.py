"""Quantized models: what makes them, what opens them, and what they lose. Everything heavy is imported when used."""
