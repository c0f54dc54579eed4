"""All engines and the one queue in front of them, in the driver's process."""
