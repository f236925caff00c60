"""Chat models, image generators and embedders, local and remote."""
