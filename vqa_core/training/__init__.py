"""The one training loop, and the feed of batches that it reads."""
