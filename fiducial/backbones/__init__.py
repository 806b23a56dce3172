"""Feature extractors, each a plain ``nn.Module``; ``names`` maps the spec's names to builders."""
