"""ML Recog: recognise a product by its nearest neighbours in a gallery of reference pictures."""
