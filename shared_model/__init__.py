"""What a hospital and the server must agree on: records, model, losses, training loop, metrics, files."""
