"""Images, archives and remote locations, transforms and samplers."""
