"""What every network's training shares: module base, resumable data module, optimizers, sections of the spec."""
