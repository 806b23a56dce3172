"""Spec keys: declared once (knob), read from YAML and overrides (compose), shared sections (common)."""
