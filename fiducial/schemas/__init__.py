"""What is generated from the knobs of a network's spec: JSON schemas, templates, cards, the reference of all keys."""
