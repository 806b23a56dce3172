"""ML Recog: products recognised by their nearest neighbours."""
