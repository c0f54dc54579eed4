"""Parts of `rewards.judge`: limits, requests, client, cache."""
