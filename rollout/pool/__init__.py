"""All engines behind one queue, in the driver's process."""
