"""Everything the model packages have in common; it knows none of them."""

__version__ = "0.1.0"

__all__ = ["__version__"]
