"""What `rewards.judge` is made of: requests, client, cache."""
