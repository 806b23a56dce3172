"""Turning an action into files: results directory, status, console, devices, seeds, Lightning callbacks."""
