"""What surrounds the loop: settings and flags, what a run writes and prints. Nothing here changes what is learned."""
