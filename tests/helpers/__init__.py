"""What several tests share: packed models with random weights, pictures good and bad, and a running server."""
